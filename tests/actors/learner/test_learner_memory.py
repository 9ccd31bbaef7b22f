"""Ways to need less memory, on CPU: states and weights off-loaded, activations computed anew, bfloat16. Training is the same."""

# ruff: noqa: F811 (fixtures of another file)

import dataclasses

import pytest

from actors.learner import settings
from actors.learner.ranks import LearnerRanks
from actors.learner.settings import attention, deepspeed_config
from arm_rl.core.batching import make_batch
from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.config import ModelConfig
from arm_rl.core.loss import SftObjective
from tests.actors.learner.test_learner import Setup, Task, spec_of, task  # noqa: F401

WAYS = {
    "optimizer": {"zero_stage": 2, "offload_optimizer": True},
    "parameters": {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
    "activations": {"zero_stage": 2, "gradient_checkpointing": True},
    "bfloat16": {"zero_stage": 2},
}


def start(task: Task, dtype: str = "float32", **changes) -> LearnerRanks:
    spec = spec_of(task, Setup(1, 0, 9999))
    spec = dataclasses.replace(
        spec, model=dataclasses.replace(spec.model, dtype=dtype), config=dataclasses.replace(spec.config, **changes)
    )
    return LearnerRanks(spec, [{"num_cpus": 0.25}])


def steps(group: LearnerRanks, task: Task, number: int) -> list[tuple[float, float]]:
    """Return loss and gradient norm of each step."""
    batch = make_batch(task.samples, num_ranks=1, micro_batch_tokens=200)
    made = [group.train(batch, task.where(), SftObjective()) for _ in range(number)]
    return [(one["learner/loss"], one["learner/grad_norm"]) for one in made]


@pytest.fixture(scope="module")
def plain(local_ray, task) -> list[tuple[float, float]]:
    group = start(task)
    try:
        return steps(group, task, 2)
    finally:
        group.close()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_it_trains_and_resumes_as_with_plenty(way, plain, task, tmp_path):
    group = start(task, "bfloat16" if way == "bfloat16" else "float32", **WAYS[way])
    try:
        first = steps(group, task, 1)
        group.save(tmp_path)
        second = steps(group, task, 1)
        group.load(tmp_path)
        again = steps(group, task, 1)
    finally:
        group.close()
    close = {"rel": 0.03} if way == "bfloat16" else {"rel": 1e-4}
    for found, expected in zip([*first, *second], plain, strict=True):
        assert found == pytest.approx(expected, **close)
    assert again == second


def test_parameters_go_to_the_host_where_it_is_said():
    config = LearnerConfig(zero_stage=3, offload_parameters=True)
    assert deepspeed_config(config, "bfloat16", 1000, use_gpu=True)["zero_optimization"]["offload_param"] == {
        "device": "cpu",
        "pin_memory": True,
    }


@pytest.mark.parametrize(
    ("model", "use_gpu", "installed", "chosen"),
    [
        ({}, True, True, "flash_attention_2"),
        ({}, True, False, None),
        ({}, False, True, None),
        ({"dtype": "float32"}, True, True, None),
        ({"attention": "sdpa"}, True, True, "sdpa"),
    ],
)
def test_flash_attention_is_taken_where_it_is_and_can_run(monkeypatch, model, use_gpu, installed, chosen):
    monkeypatch.setattr(settings, "is_flash_attn_2_available", lambda: installed)
    assert attention(ModelConfig(path="m", **model), use_gpu) == chosen
