"""A synchronous run whose processes are killed or hang, the driver too, ends bit by bit like one that was left alone; nothing is lost."""

import asyncio
from pathlib import Path

import pytest
from safetensors.torch import load_file

from arm_rl.core.config_file import load
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.trajectory_file import read
from arm_rl.experiments.chaos import KINDS, run_chaos
from arm_rl.run.metrics_log import read_lines
from arm_rl.training.grpo import train_grpo
from tests.support import small_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chaos")
    small_run.write_data(folder, 20)
    return folder


def settings(folder: Path, model: Path, name: str, *more: str) -> list[str]:
    """Return the arguments of a run of twelve steps, into the third epoch."""
    keys = (
        f"run.name={name}",
        f"num_steps={NUM_STEPS}",
        "metrics.timeline=false",
        "checkpoint.every=2",
        "learner.learning_rate=1e-3",
        "algorithm.entropy_coefficient=0.1",  # rewards are all equal: this moves the weights, by what was sampled
    )
    return ["configs/demo.yaml", *small_run.overrides(folder, model, *keys, *more)]


def sampled(run: Path) -> dict[str, list]:
    """Every token with its log-probability, by step."""
    return {
        path.name.rpartition("-")[2]: [
            [(turn.token_ids, turn.logprobs) for turn in one.trajectory.turns] for one in read(path).scored
        ]
        for path in sorted((run / "trajectories").glob("*.parquet"))
    }


def test_a_run_that_is_killed_in_every_way_ends_like_one_that_is_not(local_ray, folder, judge_folder):
    config, *overrides = settings(folder, judge_folder, "left_alone")
    asyncio.run(train_grpo(load(TrainConfig, config, overrides)))
    kills = dict.fromkeys(KINDS, 1) | {"tool_worker": 0, "engine": 2}  # a judge so young may call no tool
    command = ["jobs.train", *settings(folder, judge_folder, "killed", "run.stall_seconds=20")]
    summary = run_chaos(
        command, folder / "killed", kills=kills, seed=0, pause_seconds=0.5, mark=-10.0, hangs=["engine"]
    )
    assert summary.kills == kills
    assert summary.hangs == 1
    assert (summary.lost, summary.trained_twice) == (0, 0)
    assert summary.starts == 2
    killed, left_alone = (
        load_file(folder / name / "export" / "model.safetensors") for name in ("killed", "left_alone")
    )
    before = load_file(judge_folder / "model.safetensors")
    assert not any(before[name].equal(weight) for name, weight in left_alone.items() if "mlp" in name), (
        "it has learned something"
    )
    assert all(killed[name].equal(weight) for name, weight in left_alone.items())
    assert sampled(folder / "killed") == sampled(folder / "left_alone")
    steps = [line["step"] for line in read_lines(folder / "killed" / "metrics.jsonl") if "learner/loss" in line]
    assert steps == list(range(1, NUM_STEPS + 1)), "no step is there twice, and none is missing"
