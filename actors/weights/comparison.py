"""Samples of the weights, by which a synchronisation is checked: blocks of some tensors, equal in the learners and in each engine.

    learner: one tensor of each kind, from layers spread over the depth -> its first rows and columns
    engine: the same blocks, out of parameters that vLLM has merged (queries, keys and values; gate and up) or packed for CPU kernels

Values are compared, not sums: an update changes a few values of a bfloat16 block by one unit in the last place, which a sum may hide.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actors.weights import gather, lora

EDGE = 64  # rows and columns of a block at most
# Merged adapters: rounding moves a value now and then where learner and engine add up in another order.
MERGED_SHARE = 1e-3  # of a block's values that may differ
RELATIVE_TOLERANCE = 1e-6  # of the block's largest value: below one unit in the last place of most bfloat16 values

_COMMON = re.compile(r"(?:^|\.)((?:layers\.\d+|embed_tokens|visual\.merger)(?:\..+)?)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSample:
    """A block of one weight of the learners."""

    values: np.ndarray  # float32: [rows, columns] of a matrix, [values] of a vector
    is_merged: bool  # adapters are merged into the weight


def common_name(name: str) -> str | None:
    """Return the part of a weight's or module's name that learner and engine share; None for those that are never sampled.

    Both `model.language_model.layers.0.mlp.up_proj.weight` and `language_model.model.layers.0.mlp.up_proj.weight` give
    `layers.0.mlp.up_proj.weight`.
    """
    found = _COMMON.search(name)
    return found[1] if found else None


def chosen(names: Iterable[str]) -> list[str]:
    """Choose the weights to compare: one of each kind, the kinds of a layer spread evenly over the layers."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        if (common := common_name(name)) is not None:
            kinds.setdefault(re.sub(r"layers\.\d+", "layers", common), []).append(name)
    last = max(len(kinds) - 1, 1)
    return [same[number * (len(same) - 1) // last] for number, same in enumerate(kinds.values())]


def block(weight: Tensor) -> Tensor:
    """Return the first rows and columns of a weight."""
    return weight[:EDGE, :EDGE] if weight.ndim == 2 else weight[:EDGE]


def learner_samples(
    model: nn.Module, zero_stage: int, scaling: Tensor | None, *, wanted: bool
) -> dict[str, WeightSample]:
    """Return blocks of a learner's weights by their common names, adapters merged.

    Args:
        model: Hugging Face's model; where it is sharded, all ranks call this together.
        zero_stage: ZeRO stage of the model.
        scaling: Factor of the adapters, where there are any.
        wanted: Whether this rank needs the blocks; else none are returned.
    """
    names = set(chosen(name for name, _ in gather.plain_parameters(model)))
    adapted = lora.adapters_of(model)
    found: dict[str, WeightSample] = {}
    for piece in gather.pieces(model, zero_stage, scaling, wanted=wanted, names=names):
        for name, weight in piece:
            common = common_name(name)
            assert common is not None, "it was chosen by its common name"
            values = block(weight).to("cpu", torch.float32, copy=True).numpy()
            found[common] = WeightSample(values=values, is_merged=name in adapted)
    return found


def engine_blocks(model: Any, names: Sequence[str]) -> dict[str, tuple[list[int], bytes]]:
    """Return the blocks of an engine's model.

    Args:
        model: vLLM's model; a tensor parallel worker's first one holds the first rows and columns of each matrix.
        names: Common names; those that the model does not have are skipped.

    Returns:
        Shape and float32 values of each block, in a form that vLLM sends between processes.
    """
    modules = {common: module for name, module in model.named_modules() if (common := common_name(name))}
    merged_into = {
        part: (merged, index)
        for merged, parts in model.packed_modules_mapping.items()
        for index, part in enumerate(parts)
    }
    blocks: dict[str, tuple[list[int], bytes]] = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        module, first_row, num_rows = modules.get(path), 0, EDGE
        parent, _, part = path.rpartition(".")
        if module is None and part in merged_into:
            merged, index = merged_into[part]
            module = modules.get(f"{parent}.{merged}")
            if module is not None:
                sizes = module.output_partition_sizes
                first_row, num_rows = sum(sizes[:index]), min(EDGE, sizes[index])
        if module is not None and getattr(module, leaf, None) is not None:
            found = _rows(module, leaf, first_row, num_rows).detach().float().cpu().contiguous()
            blocks[name] = (list(found.shape), found.numpy().tobytes())
    return blocks


def difference(learner: Mapping[str, WeightSample], engine: Mapping[str, tuple[Sequence[int], bytes]]) -> str | None:
    """Return the first difference between the samples of the learners and of an engine as a clause; None if there is none.

    A weight that the engine does not have under its name is skipped, but some matrix must have been compared."""
    num_matrices = 0
    for name, sample in learner.items():
        if name not in engine:
            continue
        shape, data = engine[name]
        found = np.frombuffer(data, np.float32).reshape(shape)
        expected = sample.values[tuple(slice(size) for size in shape)]
        if expected.shape != found.shape:
            return f"{name} has the shape {found.shape} where the learners have {expected.shape}"
        tolerance = RELATIVE_TOLERANCE * np.abs(expected).max() if sample.is_merged else 0.0
        num_different = int((~(np.abs(found - expected) <= tolerance)).sum())
        if num_different > (MERGED_SHARE * found.size if sample.is_merged else 0):
            return f"{name} differs from the learners' in {num_different} of {found.size} values compared"
        num_matrices += found.ndim == 2
    return None if num_matrices or not learner else "none of its matrices could be compared with the learners'"


@torch.no_grad()
def _rows(module: nn.Module, leaf: str, first_row: int, num_rows: int) -> Tensor:
    """Return a block of a parameter; its kernel is asked where the parameter is empty because the kernel has packed it."""
    parameter = getattr(module, leaf)
    if parameter.numel():
        return block(parameter[first_row : first_row + num_rows])
    width = int(module.input_size_per_partition)
    units = torch.eye(min(EDGE, width), width, dtype=parameter.dtype, device=parameter.device)
    return module.quant_method.apply(module, units, None).T[first_row : first_row + num_rows]
