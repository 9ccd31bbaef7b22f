"""The benchmarks of packed rows at tiny sizes."""

import dataclasses

import pytest
import torch

from arm_rl.experiments.bench import packed
from arm_rl.experiments.bench.models import ModelSize
from arm_rl.experiments.bench.packed import saved_bytes

SMALL = ModelSize(hidden=64, layers=2, intermediate=64)


def test_saved_bytes_count_each_storage_once_and_no_parameter():
    layer = torch.nn.Linear(4, 3)
    values = torch.randn(5, 4, requires_grad=True)
    with saved_bytes(layer) as saved:
        layer(values).square() * values.sum()  # the layer saves its input, the square its own
    assert saved.total == 5 * 4 * 4 + 5 * 3 * 4 + 5 * 3 * 4 + 4, "the input, the square's input, two factors"


def test_a_packed_row_saves_fewer_activations(tmp_path):
    benchmark = dataclasses.replace(
        packed.ACTIVATIONS, settings=dataclasses.replace(packed.ACTIVATIONS.quick, size=SMALL)
    )
    result = benchmark.run(tmp_path)
    tokens = (64 + 4 * 12) / (4 * (64 + 16))
    assert result.ratio == pytest.approx(tokens, rel=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", [packed.TEXT, packed.IMAGES, packed.NONE], ids=lambda one: one.key)
def test_speeds_are_measured_in_turn(benchmark, local_ray, tmp_path):
    trajectories = dataclasses.replace(benchmark.settings.trajectories, num_groups=2, group_size=2)
    settings = dataclasses.replace(benchmark.settings, trajectories=trajectories, size=SMALL, repeats=1)
    result = dataclasses.replace(benchmark, settings=settings).run(tmp_path)
    assert result.ratio == result.ours[0] / result.other[0] > 0
