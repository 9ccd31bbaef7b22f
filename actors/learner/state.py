"""A learner's state on disk: whole tensors by name in safetensors files, so that any number of ranks and any ZeRO stage goes on from it.

    each parameter: its weight in float32 and AdamW's two moments -> gathered -> learner-RANK.safetensors, of one rank after the other
    learner-*.safetensors, memory-mapped -> the part of each tensor that a rank holds -> the rank's engine

DeepSpeed's own checkpoints are pickles tied to the number of ranks. Its universal checkpoints, which are not tied, are made by a script of
their own after the run and are pickles too; they do not know ZeRO 0. Frozen weights are not written: the model's folder has them.
"""

import json
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from actors.weights.files import system_errors
from arm_rl.core.errors import UserError

_STEP = "learner.json"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class LearnerStateError(UserError):
    """A checkpoint that does not fit the model."""


def write(engine: Any, folder: Path, *, rank: int, num_ranks: int, step: int) -> None:
    """Writes the engine's trainable weights, moments and random states; all ranks at once, into one folder.

    Raises:
        OSError: there is no room, for example.
    """
    access = _Access(engine, step)
    mine: dict[str, Tensor] = {}
    for place, (name, parameter) in enumerate(access.parameters):
        for kind in (None, *_MOMENTS):
            whole = access.get(parameter, kind)  # all ranks together
            if place % num_ranks == rank:
                mine[_key(name, kind)] = whole.detach().to("cpu", torch.float32, copy=True).contiguous()
    with system_errors():
        save_file(mine, folder / f"learner-{rank}.safetensors")
    (folder / f"random-{rank}.json").write_text(json.dumps(_random_states()))
    if rank == 0:
        (folder / _STEP).write_text(json.dumps({"step": step}))


def read(engine: Any, folder: Path, *, rank: int) -> int:
    """Restore what `write` wrote, with whatever number of ranks; return the number of optimizer steps done by then.

    With ZeRO, a rank reads no more than its own part of the tensors; all ranks call this together.

    Raises:
        FileNotFoundError: there is no checkpoint.
        LearnerStateError: a tensor is missing, or has another shape.
    """
    step = _step_of(folder)
    access = _Access(engine, step)
    access.begin()
    files = _Files(folder)
    for name, parameter in access.parameters:
        for kind in (None, *_MOMENTS):
            part = files.take(_key(name, kind), access.shape(parameter), access.own_part(parameter))
            access.set(parameter, kind, part)
    access.finish()
    states = folder / f"random-{rank}.json"
    if states.is_file():  # else the ranks are more than they were; nothing in training draws at random
        _set_random_states(json.loads(states.read_text()))
    return step


@torch.no_grad()
def read_weights(policy: nn.Module, folder: Path) -> int:
    """Sets a policy's trainable weights to those of a checkpoint, without an engine; gives the step. Raises as `read`."""
    step, files = _step_of(folder), _Files(folder)
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            whole = slice(0, parameter.numel())
            parameter.copy_(files.take(_key(name, None), parameter.shape, whole).view_as(parameter))
    return step


def _step_of(folder: Path) -> int:
    if not (folder / _STEP).is_file():
        raise FileNotFoundError(f"{folder}: no checkpoint of a learner")
    return int(json.loads((folder / _STEP).read_text())["step"])


class _Files:
    """The complete tensors that the ranks wrote, whichever of them wrote which."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        files = [safe_open(path, framework="pt") for path in sorted(folder.glob("learner-*.safetensors"))]
        self._places = {key: file for file in files for key in file.keys()}  # noqa: SIM118

    def take(self, key: str, shape: torch.Size, part: slice) -> Tensor:
        """Read some elements of a flattened tensor, and of the file no more than the rows that hold these.

        Args:
            key: The tensor's name.
            shape: Shape that the tensor must have.
            part: First element, and the one after the last.

        Returns:
            [elements].

        Raises:
            LearnerStateError: If there is no such tensor, or it has another shape.
        """
        if key not in self._places:
            raise LearnerStateError(f"{self._folder}: no {key!r}: a file is missing, or other parameters were trained")
        stored = self._places[key].get_slice(key)
        if (found := tuple(stored.get_shape())) != tuple(shape):
            raise LearnerStateError(f"{self._folder}: {key!r} has the shape {found}, not {tuple(shape)}")
        if part.stop <= part.start:
            return torch.empty(0)
        if not shape:
            return stored[...].flatten()
        width = math.prod(shape[1:])
        first, end = part.start // width, math.ceil(part.stop / width)  # rows
        return stored[first:end].flatten()[part.start - first * width : part.stop - first * width]


def _key(name: str, kind: str | None) -> str:
    return f"{name}.{kind or 'weight_fp32'}"


class _Access:
    """Whole tensors of a DeepSpeed engine, whichever way its stage keeps them.

    What DeepSpeed 0.19 has for it (`deepspeed.utils.safe_get_full_...`) does not know ZeRO 0 and moments before the first step, and sets
    from complete tensors only; hence the few attributes of its optimizers that are used here.
    """

    def __init__(self, engine: Any, step: int) -> None:
        self._engine, self._optimizer = engine, engine.optimizer
        self._stage = engine.zero_optimization_stage()
        self.parameters = [(name, one) for name, one in engine.module.named_parameters() if one.requires_grad]
        self._adam: torch.optim.AdamW = getattr(self._optimizer, "optimizer", self._optimizer)
        self._masters = self._own_masters()
        for tensor in self._optimized():
            state = self._adam.state[tensor]
            for kind in _MOMENTS:
                if kind not in state:
                    state[kind] = torch.zeros_like(tensor)
            state["step"] = torch.tensor(float(step), dtype=torch.float32, device=tensor.device)
        if self._stage in (1, 2):
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        return getattr(parameter, "ds_shape", parameter.shape)

    def get(self, parameter: nn.Parameter, kind: str | None) -> Tensor:
        """The whole of a weight (kind None) or of a moment."""
        if self._stage:
            from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

            return (
                safe_get_full_fp32_param(parameter) if kind is None else safe_get_full_optimizer_state(parameter, kind)
            )
        master = self._masters[parameter]
        return master if kind is None else self._adam.state[master][kind]

    def own_part(self, parameter: nn.Parameter) -> slice:
        """Return which elements of the flattened parameter this rank's optimizer holds, without padding."""
        if self._stage == 3:
            size, numel = parameter.ds_tensor.numel(), parameter.ds_numel
            start = min(self._optimizer._get_param_partition_rank(parameter) * size, numel)
            return slice(start, min(start + size, numel))
        if not self._stage:
            return slice(0, parameter.numel())
        mapping = parameter._hp_mapping  # None if the parameter is in other ranks' partitions
        address = mapping and mapping.lp_fragment_address
        return slice(address.start, address.start + address.numel) if address else slice(0, 0)

    @torch.no_grad()
    def set(self, parameter: nn.Parameter, kind: str | None, part: Tensor) -> None:
        """Replace this rank's part of a weight (kind None) or of a moment."""
        if self._stage == 3:
            from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

            shard = nn.functional.pad(part, (0, parameter.ds_tensor.numel() - part.numel()))
            shard = shard.to(parameter.ds_tensor.device)
            if kind is None:
                safe_set_local_fp32_param(parameter, shard)
                parameter.ds_tensor.data.copy_(shard.view_as(parameter.ds_tensor))
            else:
                safe_set_local_optimizer_state(parameter, shard, kind)
        elif self._stage:
            if part.numel():
                parameter._hp_mapping.get_hp_fragment(kind).data.copy_(part)
        else:
            self.get(parameter, kind).copy_(part.view_as(parameter))
            if kind is None:
                parameter.copy_(part.view_as(parameter))

    def begin(self) -> None:
        """Prepare for `set`: small weights, which ZeRO 3 keeps complete on each rank, become shards like all others."""
        if self._stage == 3 and self._optimizer.persistent_parameters:
            self._optimizer.persistent_parameters[0].partition(self._optimizer.persistent_parameters)

    def finish(self) -> None:
        """Gather what each rank holds complete: small weights with ZeRO 3, all weights with ZeRO 1 and 2."""
        if self._stage in (1, 2):
            self._optimizer.update_lp_params()
        elif self._stage == 3 and self._optimizer.persistent_parameters:
            self._optimizer.persistent_parameters[0].all_gather(self._optimizer.persistent_parameters)

    def _own_masters(self) -> Mapping[nn.Parameter, Tensor]:
        """ZeRO 0: what AdamW steps, for each parameter; a float32 copy where the parameter itself has less."""
        if self._stage:
            return {}
        if self._adam is self._optimizer:
            return {one: one for _, one in self.parameters}
        pairs = zip(self._optimizer.fp16_groups, self._optimizer.fp32_groups, strict=True)
        return {low: high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}

    def _optimized(self) -> Iterator[Tensor]:
        """The tensors that AdamW steps on this rank."""
        if self._stage == 3:
            yield from self._optimizer.fp32_partitioned_groups_flat
        else:
            for group in self._adam.param_groups:
                yield from group["params"]


def _random_states() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state().tolist() if torch.cuda.is_available() else None,
    }


def _set_random_states(states: Mapping[str, Any]) -> None:
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, numbers, *rest = states["numpy"]
    np.random.set_state((kind, np.array(numbers, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8))
