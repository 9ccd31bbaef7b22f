"""A learner's state on disk: whole tensors by name in safetensors files, so that any number of ranks and any ZeRO stage goes on from it.

    each parameter: its weight in float32 and AdamW's two moments -> gathered -> learner-RANK.safetensors, of one rank after the other

DeepSpeed's own checkpoints are pickles tied to the number of ranks. Its universal checkpoints, which are not tied, are made by a script of
their own after the run and are pickles too; they do not know ZeRO 0. Frozen weights are not written: the model's folder has them.
"""

import json
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
    """Goes back to what `write` wrote, with whatever number of ranks; gives the number of optimizer steps done by then.

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
            access.set(parameter, kind, files.take(_key(name, kind), access.shape(parameter)))
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
            parameter.copy_(files.take(_key(name, None), parameter.shape))
    return step


def _step_of(folder: Path) -> int:
    if not (folder / _STEP).is_file():
        raise FileNotFoundError(f"{folder}: no checkpoint of a learner")
    return int(json.loads((folder / _STEP).read_text())["step"])


class _Files:
    """The whole tensors that the ranks wrote, whichever of them wrote which."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        files = [safe_open(path, framework="pt") for path in sorted(folder.glob("learner-*.safetensors"))]
        self._places = {key: file for file in files for key in file.keys()}  # noqa: SIM118

    def take(self, key: str, shape: torch.Size) -> Tensor:
        """Reads one."""
        if key not in self._places:
            raise LearnerStateError(f"{self._folder}: no {key!r}: a file is missing, or other parameters were trained")
        value = self._places[key].get_tensor(key)
        if value.shape != shape:
            raise LearnerStateError(f"{self._folder}: {key!r} has the shape {tuple(value.shape)}, not {tuple(shape)}")
        return value


def _key(name: str, kind: str | None) -> str:
    return f"{name}.{kind or 'weight_fp32'}"


class _Access:
    """Whole tensors of a DeepSpeed engine, whichever way its stage keeps them.

    What DeepSpeed 0.19 has for it (`deepspeed.utils.safe_get_full_...`) does not know ZeRO 0, moments before the first step, nor, when it
    sets, a ZeRO-3 shard that is padded; hence the few attributes of its optimizers that are used here.
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

    @torch.no_grad()
    def set(self, parameter: nn.Parameter, kind: str | None, value: Tensor) -> None:
        """Takes over this rank's share of it."""
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        if self._stage == 3:
            share = self._share(parameter, value)
            if kind is None:
                safe_set_local_fp32_param(parameter, share)
                parameter.ds_tensor.data.copy_(share.view_as(parameter.ds_tensor))
            else:
                safe_set_local_optimizer_state(parameter, share, kind)
            return
        if not self._stage:
            self.get(parameter, kind).copy_(value)
        elif kind is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)
        if kind is None:
            parameter.copy_(value)

    def begin(self) -> None:
        """Before the first `set`: small weights, which ZeRO 3 keeps whole on each rank, become shards like all others ..."""
        if self._stage == 3 and self._optimizer.persistent_parameters:
            self._optimizer.persistent_parameters[0].partition(self._optimizer.persistent_parameters)

    def finish(self) -> None:
        """... and after the last one they are put together again."""
        if self._stage == 3 and self._optimizer.persistent_parameters:
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

    def _share(self, parameter: Any, value: Tensor) -> Tensor:
        """This rank's part of a ZeRO-3 parameter, the last one padded."""
        size = parameter.ds_tensor.numel()
        rank = self._optimizer._get_param_partition_rank(parameter)
        flat = value.flatten()[rank * size : (rank + 1) * size]
        return nn.functional.pad(flat, (0, size - flat.numel())).to(parameter.ds_tensor.device)


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
