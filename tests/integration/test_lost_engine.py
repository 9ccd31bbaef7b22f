"""Engines that are killed in a training whose learners send weights directly (by gloo in place of NCCL): no step is done again.

Engines die while they run groups, one of two and then both, and while weights are sent to them. The learners go on, and the run
ends bit by bit like one that was left alone and sent its weights by file.
"""

import asyncio
from pathlib import Path

import pytest
from safetensors.torch import load_file

from actors.learner import ranks
from actors.learner.ranks import LearnerRanks
from actors.rollout.pool import RolloutPool
from arm_rl.core.config_file import load
from arm_rl.core.stage_config import TrainConfig
from arm_rl.demo import model as judge
from arm_rl.run.metrics_log import read_lines
from arm_rl.training.driver import Driver
from arm_rl.training.grpo import train_grpo
from arm_rl.training.weight_sync import WeightSync
from tests.integration.test_chaos import sampled
from tests.support import small_run
from tests.support.gloo_rollout import GlooRollout
from tests.support.packed_transfer import GlooLearner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_STEPS = 5
ORDERS = {
    1: ("run_group", 1),
    2: ("run_group", 2),
    3: ("receive_weights", 1),
}  # by the steps done before: who dies how often


def train(folder: Path, model: Path, name: str) -> list[dict[str, float]]:
    """Run the stage; return the metrics of its steps."""
    overrides = small_run.overrides(
        folder,
        model,
        f"run.name={name}",
        f"num_steps={NUM_STEPS}",
        "metrics.timeline=false",
        "checkpoint.every=0",
        "rollout.num_actors=2",
        "learner.num_ranks=2",
        "learner.zero_stage=2",
        "learner.learning_rate=1e-3",
        "algorithm.entropy_coefficient=0.1",  # rewards are all equal: this moves the weights, by what was sampled
    )
    asyncio.run(train_grpo(load(TrainConfig, "configs/demo.yaml", overrides)))
    return [line for line in read_lines(folder / name / "metrics.jsonl") if "learner/loss" in line]


def send_by_gloo(monkeypatch: pytest.MonkeyPatch, orders: Path) -> list[str]:
    """Put gloo in NCCL's place, and give the orders of `ORDERS`; return what begins: steps, starts of learners, synchronisations."""
    begun: list[str] = []

    def note(owner: type, method: str, name: str, before=lambda self: None) -> None:
        original = getattr(owner, method)

        def noted(self, *arguments, **options):
            begun.append(name)
            before(self)
            return original(self, *arguments, **options)

        monkeypatch.setattr(owner, method, noted)

    def give_orders(driver: Driver) -> None:
        method, number = ORDERS.get(driver.steps_done, ("", 0))
        for one in range(number):
            (orders / f"{method} may die {one}").touch()

    start = RolloutPool.start
    monkeypatch.setattr(
        RolloutPool, "start", lambda spec, executors, place, _: start(spec, executors, place, GlooRollout)
    )
    monkeypatch.setattr(TrainConfig, "transfer", "nccl")
    monkeypatch.setattr(ranks, "Learner", GlooLearner)
    note(LearnerRanks, "__init__", "learners")
    note(Driver, "step", "step", give_orders)
    note(WeightSync, "sync", "sync")
    return begun


def test_a_lost_engine_costs_no_step_and_no_learner(local_ray, tmp_path, monkeypatch):
    model = judge.build(tmp_path / "model")
    small_run.write_data(tmp_path, 20)
    train(tmp_path, model, "left_alone")
    with monkeypatch.context() as patch:
        begun = send_by_gloo(patch, tmp_path)
        steps = train(tmp_path, model, "killed")
    assert not list(tmp_path.glob("* may die *")), "all of them died"
    assert [step["step"] for step in steps] == list(range(1, NUM_STEPS + 1))
    assert begun == ["learners", "step", "sync", "step", "sync", "step", "sync", "sync", "step", "sync", "step", "sync"]
    assert [step["recovery/learner"] for step in steps] == [0] * NUM_STEPS
    assert [step["recovery/rollout"] for step in steps] == [0, 1, 2, 1, 0]
    assert all(step["learner/logprob_gap"] < 1e-5 for step in steps)
    assert sampled(tmp_path / "killed") == sampled(tmp_path / "left_alone")
    killed, left_alone = (
        load_file(tmp_path / name / "export" / "model.safetensors") for name in ("killed", "left_alone")
    )
    before = load_file(model / "model.safetensors")
    assert not any(before[name].equal(weight) for name, weight in left_alone.items() if "mlp" in name)
    assert all(killed[name].equal(weight) for name, weight in left_alone.items())
