"""Where each byte of a file of weights goes in vLLM's model on CPU: recorded while vLLM loads a first file, replayed for all that follow.

vLLM's own loading goes through its weight loaders tensor by tensor, into fresh memory, which its kernels then pack. Replayed, a matrix
is packed straight from the file, and the rest is copied into its place.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from actors.weights.shared_file import MappedWeights

_MAX_THREADS = 4


@dataclass(frozen=True, order=True, slots=True)
class _Copy:
    """Of a run of elements that lie one after the other in the file as in the parameter."""

    to: int  # element of the parameter
    start: int  # byte of the file's data
    size: int  # elements


@dataclass(slots=True)
class _Target:
    """A parameter that is loaded."""

    name: str  # in its layer
    shape: torch.Size  # as it is loaded; packed weights are empty afterwards
    dtype: torch.dtype  # of the file's tensors
    copies: list[_Copy] = field(default_factory=list)

    def merge(self, may_be_padded: bool) -> bool:
        """Joins neighbours; false where the copies are not all of the parameter, each element once.

        Args:
            may_be_padded: at its end, with what stays as it is.
        """
        end = 0
        merged: list[_Copy] = []
        for copy in sorted(set(self.copies)):
            if copy.to != end:
                return False
            end += copy.size
            last = merged[-1] if merged else None
            if last is not None and last.start + last.size * self.dtype.itemsize == copy.start:
                merged[-1] = _Copy(last.to, last.start, last.size + copy.size)
            else:
                merged.append(copy)
        self.copies = merged
        return end == self.shape.numel() or (may_be_padded and end < self.shape.numel())

    def source(self, copy: _Copy, data: Tensor) -> Tensor:
        """The elements in the file."""
        return data[copy.start : copy.start + copy.size * self.dtype.itemsize].view(self.dtype)

    def whole(self, data: Tensor) -> Tensor:
        """The parameter as a view of the file where it lies there in one piece."""
        pieces = [self.source(copy, data) for copy in self.copies]
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).view(self.shape)


@dataclass(slots=True)
class _Layer:
    module: nn.Module
    targets: list[_Target] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        return sum(target.shape.numel() * target.dtype.itemsize for target in self.targets)

    @torch.no_grad()
    def load(self, data: Tensor) -> None:
        """Copies and packs."""
        kept = {}
        for target in self.targets:
            parameter = self.module._parameters[target.name]
            assert parameter is not None
            if parameter.numel():
                flat = parameter.data.view(-1)
                for copy in target.copies:
                    flat[copy.to : copy.to + copy.size].copy_(target.source(copy, data))
            else:  # the kernel has a packed copy alone
                kept[target.name] = parameter
                self.module._parameters[target.name] = nn.Parameter(
                    target.whole(data).to(parameter.dtype), requires_grad=False
                )
        if hasattr(self.module, "cpu_linear"):
            self.module.quant_method.process_weights_after_loading(self.module)  # packs anew
        self.module._parameters.update(kept)


class LoadPlan:
    """How to load a file with this header."""

    def __init__(self, header: bytes, layers: Sequence[_Layer]) -> None:
        self.header = header
        self._layers = sorted(layers, key=lambda layer: layer.num_bytes, reverse=True)

    def load(self, weights: MappedWeights, cores: set[int]) -> None:
        """Loads all layers, a few at a time.

        Args:
            cores: that threads may use, beside the one that vLLM has bound its thread to.
        """
        num_threads = min(_MAX_THREADS, len(cores))
        with ThreadPoolExecutor(num_threads, initializer=os.sched_setaffinity, initargs=(0, cores)) as pool:
            for _ in pool.map(lambda layer: layer.load(weights.data), self._layers):
                pass


class Recorder(TorchDispatchMode):
    """While it is entered, sees what is copied into the parameters of a model whose layers wait to be loaded (on the meta device)."""

    def __init__(self, model: nn.Module, weights: MappedWeights, *, may_be_padded: Callable[[nn.Module], bool]) -> None:
        """Prepares.

        Args:
            weights: the file that will be loaded.
            may_be_padded: whether the end of a layer's parameter may stay as it is.
        """
        super().__init__()
        self._weights, self._may_be_padded = weights, may_be_padded
        self._base = weights.data.data_ptr()
        self._layers = [_Layer(module) for module in model.modules()]
        self._targets: dict[int, tuple[_Layer, _Target]] = {}  # by the parameter's storage
        self._is_plain = True
        for layer in self._layers:
            for name, parameter in layer.module._parameters.items():
                if parameter is not None:
                    target = _Target(name, parameter.shape, parameter.dtype)
                    self._targets[parameter.untyped_storage()._cdata] = layer, target
                    self._is_plain &= parameter.is_contiguous()

    def __torch_dispatch__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.copy_.default:
            self._see(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def plan(self) -> LoadPlan | None:
        """What was seen; None where it was more than copies from the file to all of some parameters."""
        if not self._is_plain:
            return None
        for layer, target in self._targets.values():
            if target.copies:
                if not target.merge(self._may_be_padded(layer.module)):
                    return None
                layer.targets.append(target)
        return LoadPlan(self._weights.header, [layer for layer in self._layers if layer.targets])

    def _see(self, to: Tensor, source: Tensor) -> None:
        found = self._targets.get(to.untyped_storage()._cdata)
        if found is None:
            return
        start = source.data_ptr() - self._base if not source.is_meta else -1
        inside = start >= 0 and start + source.nbytes <= self._weights.data.nbytes
        _, target = found
        of_one_kind = not target.copies or target.dtype == source.dtype
        if not (
            inside and of_one_kind and source.is_contiguous() and to.is_contiguous() and source.numel() == to.numel()
        ):
            self._is_plain = False
            return
        target.dtype = source.dtype
        target.copies.append(_Copy(int(to.storage_offset()), start, source.numel()))
