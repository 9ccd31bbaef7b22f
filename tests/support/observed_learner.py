"""A learner rank that records how much of the model it holds while it loads, and how much of a checkpoint it reads."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from actors.learner import state
from actors.learner.rank import Learner


@dataclass
class Loaded:
    """What a rank held, in elements of parameters."""

    most: int  # whole parameters at a time, while it loaded
    largest: int  # the largest parameter
    whole: int  # parameters that are whole after loading
    own: int  # this rank's shards
    all: int  # the model
    buffers: dict[str, Tensor]


class ObservedLearner(Learner):
    """A rank in whose process loading and reading are counted."""

    def start(self, address: str, port: int) -> None:
        seen: dict[int, nn.Parameter] = {}
        self._most = self.num_read = 0

        def observe(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
            seen[id(parameter)] = parameter
            self._most = max(self._most, sum(one.numel() for one in seen.values() if not one.is_meta))

        handle = register_module_parameter_registration_hook(observe)
        try:
            super().start(address, port)
        finally:
            handle.remove()

    def loaded(self) -> Loaded:
        parameters = list(self._policy.parameters())
        return Loaded(
            most=self._most,
            largest=max(one.ds_numel for one in parameters),
            whole=sum(one.numel() for one in parameters),
            own=sum(one.ds_tensor.numel() for one in parameters),
            all=sum(one.ds_numel for one in parameters),
            buffers=dict(self._policy.hf.named_buffers()),
        )

    def load(self, folder: Path) -> int:
        state.safe_open = partial(_CountedFile, self)  # type: ignore[assignment, misc]
        try:
            return super().load(folder)
        finally:
            state.safe_open = safe_open  # type: ignore[misc]

    def count_read(self) -> int:
        """Elements of checkpoints that were read."""
        return self.num_read


class _CountedFile:
    def __init__(self, learner: ObservedLearner, path: Path, framework: str) -> None:
        self._learner, self._file = learner, safe_open(path, framework=framework)

    def keys(self) -> list[str]:
        return self._file.keys()

    def get_tensor(self, name: str) -> Tensor:
        return self.get_slice(name)[...]

    def get_slice(self, name: str) -> "_CountedSlice":
        return _CountedSlice(self._learner, self._file.get_slice(name))


class _CountedSlice:
    def __init__(self, learner: ObservedLearner, part: Any) -> None:
        self._learner, self._slice = learner, part
        self.get_shape = part.get_shape

    def __getitem__(self, rows: Any) -> Tensor:
        read = self._slice[rows]
        self._learner.num_read += read.numel()
        return read
