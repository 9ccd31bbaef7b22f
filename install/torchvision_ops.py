"""Import hook that lets a CUDA-built torchvision load beside a CPU build of torch.

The package index carries only the CUDA build of torchvision. Beside a CPU torch its compiled operators cannot be loaded
and `import torchvision` then fails, because it attaches shape functions to operators that do not exist. Nothing here calls those
operators: declaring the schemas of the two that are looked up by name is enough. `install.py` copies this file into the virtual
environment with a `.pth` file, so that every process has it, vLLM's own subprocesses too.

Where torchvision loads its operators by itself, the hook does nothing. Remove it when the index carries a CPU build.
"""

import importlib.abc
import importlib.machinery
import sys

EXTENSION = "torchvision.extension"  # the module that tries to load the compiled operators
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _DeclareMissingOperators(importlib.abc.Loader):
    """Runs `torchvision.extension` and declares the schemas if it found no compiled operators."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec):  # noqa: ANN001, ANN202 (importlib's own types)
        return self._loader.create_module(spec)

    def exec_module(self, module):  # noqa: ANN001, ANN202
        self._loader.exec_module(module)
        if not module._has_ops():
            import torch

            module.declared_operators = torch.library.Library("torchvision", "DEF")  # lives as long as the module
            for schema in SCHEMAS:
                module.declared_operators.define(schema)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):  # noqa: ANN001, ANN202
        if fullname != EXTENSION:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _DeclareMissingOperators(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
