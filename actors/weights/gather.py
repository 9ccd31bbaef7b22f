"""The whole weights of a model that ZeRO may have cut into shards: gathered some at a time, adapters merged, under plain names."""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from actors.weights import lora

_GATHERED_ELEMENTS = 1 << 28  # of ZeRO-3 shards brought together at a time


def pieces(
    model: nn.Module,
    zero_stage: int,
    scaling: Tensor | None,
    *,
    wanted: bool = True,
    names: Collection[str] | None = None,
) -> Iterator[list[tuple[str, Tensor]]]:
    """All weights, tied ones once, by the names of a model without adapters; each piece holds until the next one is asked for.

    Args:
        model: Hugging Face's; where it is sharded, all ranks iterate together.
        scaling: of adapters, where there are any.
        wanted: whether this rank needs the tensors; else its pieces are empty.
        names: those to gather; by default all.
    """
    adapters = lora.adapters_of(model)
    named = [(name, weight) for name, weight in plain_parameters(model) if names is None or name in names]
    for piece in _cut(named):
        beside = [part for name, _ in piece if (adapter := adapters.get(name)) for part in (adapter.down, adapter.up)]
        with gathered([*(weight for _, weight in piece), *beside], zero_stage), torch.no_grad():
            yield [(name, _merged(weight, adapters.get(name), scaling)) for name, weight in piece] if wanted else []


def plain_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the model's own parameters by the names of a model without adapters."""
    return [
        (plain, weight) for name, weight in model.named_parameters() if (plain := lora.plain_name(name)) is not None
    ]


def gathered(parameters: Sequence[nn.Parameter], zero_stage: int) -> contextlib.AbstractContextManager:
    """Makes shards whole for a while."""
    if zero_stage < 3:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(parameters))


def whole(model: nn.Module, zero_stage: int, scaling: Tensor | None, *, wanted: bool) -> dict[str, Tensor]:
    """All of them, on one rank; empty on the others. ZeRO-3's come as copies on the CPU."""
    weights: dict[str, Tensor] = {}
    if zero_stage < 3 and not wanted:
        return weights
    for piece in pieces(model, zero_stage, scaling, wanted=wanted):
        weights |= {name: weight if zero_stage < 3 else weight.to("cpu", copy=True) for name, weight in piece}
    return weights


def adapters(model: nn.Module, zero_stage: int, *, wanted: bool) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each matrix by its plain name, copies on the CPU; empty where they are not wanted."""
    found = lora.adapters_of(model)
    parts = [part for adapter in found.values() for part in (adapter.down, adapter.up)]
    with gathered(parts, zero_stage):
        if not wanted:
            return {}
        return {
            name: (adapter.down.detach().to("cpu", copy=True), adapter.up.detach().to("cpu", copy=True))
            for name, adapter in found.items()
        }


def in_files_order(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same under the names of Hugging Face's files, in the model's order: what engines merge stands side by side there."""
    order = {id(tensor): place for place, tensor in enumerate(weights.values())}
    renamed = revert_weight_conversion(model, dict(weights))
    return dict(sorted(renamed.items(), key=lambda item: order.get(id(item[1]), len(order))))


def _merged(weight: nn.Parameter, adapter: lora.Adapter | None, scaling: Tensor | None) -> Tensor:
    if adapter is None or scaling is None:
        return weight.detach()
    return lora.merge(weight.detach(), adapter.down, adapter.up, scaling.to(weight.device))


def _cut(named: Sequence[tuple[str, nn.Parameter]]) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """As many at a time as may be gathered together."""
    piece: list[tuple[str, nn.Parameter]] = []
    elements = 0
    for name, parameter in named:
        size = getattr(parameter, "ds_numel", parameter.numel())  # of a ZeRO-3 shard: that of the whole
        if piece and elements + size > _GATHERED_ELEMENTS:
            yield piece
            piece, elements = [], 0
        piece.append((name, parameter))
        elements += size
    if piece:
        yield piece
