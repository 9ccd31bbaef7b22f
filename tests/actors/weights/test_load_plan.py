"""What is recorded while a model is loaded, replayed with other weights: the same places, or no plan at all."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from actors.weights.files import write_weights
from actors.weights.load_plan import LoadPlan, Recorder
from actors.weights.shared_file import MappedWeights, map_weights

Load = Callable[[nn.Module, dict[str, Tensor]], None]


class Merged(nn.Module):
    """A matrix that is loaded from two, and packed: only the packed copy stays."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, 3), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(5), requires_grad=False)
        self.quant_method = self
        self.cpu_linear = torch.zeros(5, 3)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        self.cpu_linear = self.weight.detach().clone()
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.merged = Merged()
        self.rows = nn.Embedding(4, 3)  # one more than the file has


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"l.a.weight": (2, 3), "l.a.bias": (2,), "l.b.weight": (3, 3), "l.b.bias": (3,), "rows.weight": (3, 3)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@torch.no_grad()
def load(model: nn.Module, read: dict[str, Tensor]) -> None:
    """As vLLM's loaders do."""
    for part, rows in (("a", slice(0, 2)), ("b", slice(2, 5))):
        model.merged.weight[rows].copy_(read[f"l.{part}.weight"])
        model.merged.bias[rows].copy_(read[f"l.{part}.bias"])
    model.rows.weight[:3].copy_(read["rows.weight"])


def recorded(model: nn.Module, weights: MappedWeights, how: Load = load) -> LoadPlan | None:
    recorder = Recorder(model, weights, may_be_padded=lambda module: isinstance(module, nn.Embedding))
    with recorder:
        how(model, weights.tensors)
    model.merged.process_weights_after_loading(model.merged)
    return recorder.plan()


def test_other_weights_reach_the_same_places(tmp_path: Path) -> None:
    model = Model()
    padding = model.rows.weight[3].clone()
    plan = recorded(model, map_weights(write_weights(tensors(1), tmp_path, 1).path))
    assert plan is not None
    kept = model.merged.weight
    second = map_weights(write_weights(tensors(2), tmp_path, 2).path)
    assert second.header == plan.header
    plan.load(second, {0})
    new = tensors(2)
    assert torch.equal(model.merged.cpu_linear, torch.cat([new["l.a.weight"], new["l.b.weight"]]))
    assert torch.equal(model.merged.bias, torch.cat([new["l.a.bias"], new["l.b.bias"]]))
    assert torch.equal(model.rows.weight, torch.cat([new["rows.weight"], padding[None]]))
    assert model.merged.weight is kept  # empty, as the kernels know it
    second.data.zero_()
    assert model.merged.cpu_linear.any(), "nothing of the model lies in the file"


def test_parts_that_lie_apart_are_put_together(tmp_path: Path) -> None:
    apart = {
        name.replace("l.", f"l.{name.split('.')[1]}."): tensor
        for name, tensor in tensors(1).items()
        if name != "rows.weight"
    }
    files = [
        map_weights(write_weights(apart | {"rows.weight": torch.ones(3, 3)}, tmp_path, version).path)
        for version in (1, 2)
    ]

    def named(model: nn.Module, read: dict[str, Tensor]) -> None:
        load(model, {name.replace("l.a.a", "l.a").replace("l.b.b", "l.b"): tensor for name, tensor in read.items()})

    model = Model()
    plan = recorded(model, files[0], named)
    assert plan is not None
    model.merged.cpu_linear = torch.zeros(0)
    plan.load(files[1], {0})
    assert torch.equal(model.merged.cpu_linear, torch.cat([tensors(1)["l.a.weight"], tensors(1)["l.b.weight"]]))


@torch.no_grad()
def changes(model: nn.Module, read: dict[str, Tensor]) -> None:
    load(model, {name: tensor + 1 if name == "l.a.weight" else tensor for name, tensor in read.items()})


@torch.no_grad()
def leaves_out(model: nn.Module, read: dict[str, Tensor]) -> None:
    model.merged.weight[:2].copy_(read["l.a.weight"])


@torch.no_grad()
def transposes(model: nn.Module, read: dict[str, Tensor]) -> None:
    load(model, read)
    model.merged.weight[2:].copy_(read["l.b.weight"].T)


@torch.no_grad()
def works_on_what_it_loaded(model: nn.Module, read: dict[str, Tensor]) -> None:
    load(model, read)
    model.merged.bias.copy_(model.merged.bias.exp())


@pytest.mark.parametrize("how", [changes, leaves_out, transposes, works_on_what_it_loaded])
def test_there_is_no_plan_for_more_than_copying(tmp_path: Path, how: Load) -> None:
    assert recorded(Model(), map_weights(write_weights(tensors(1), tmp_path, 1).path), how) is None
