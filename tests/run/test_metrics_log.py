"""Metrics on disk, at Weights & Biases (offline) and on the console."""

import io
import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from arm_rl.core.config import MetricsConfig
from arm_rl.run.metrics_log import MetricsLog, read_lines


@dataclass(frozen=True)
class SomeConfig:
    seed: int = 3


def open_log(folder: Path, *, wandb="disabled", output=None, **changes) -> MetricsLog:
    console = Console(file=output or io.StringIO(), width=40)
    return MetricsLog(
        folder, MetricsConfig(wandb=wandb), SomeConfig(), 10, console=console, **{"stage": "stage1", **changes}
    )


def test_lines_hold_step_stage_and_values(tmp_path):
    with open_log(tmp_path) as log:
        log.log(1, {"reward/mean": 0.5, "learner/grad_norm": float("nan")})
        log.log(2, {"reward/mean": 0.75})
    assert read_lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "stage": "stage1", "reward/mean": 0.5, "learner/grad_norm": None},
        {"step": 2, "stage": "stage1", "reward/mean": 0.75},
    ]


def test_what_was_found_at_the_start_stands_in_the_first_line(tmp_path):
    with open_log(tmp_path, first={"data/skipped_rows": 3.0}) as log:
        for step in (1, 2):
            log.log(step, {"reward/mean": 0.5})
    assert [line.get("data/skipped_rows") for line in read_lines(tmp_path / "metrics.jsonl")] == [3.0, None]


def test_a_resumed_run_replaces_the_steps_it_does_again(tmp_path):
    with open_log(tmp_path, stage="sft") as log:
        log.log(3, {"learner/loss": 1.0})
    with open_log(tmp_path) as log:
        for step in (1, 2, 3):
            log.log(step, {"reward/mean": 0.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "stage": "stage1", "rew')  # the run was killed here
    with open_log(tmp_path) as log:
        log.log(3, {"reward/mean": 1.0})
    lines = [(line["stage"], line["step"], line.get("reward/mean")) for line in read_lines(tmp_path / "metrics.jsonl")]
    assert lines == [("sft", 3, None), ("stage1", 1, 0.0), ("stage1", 2, 0.0), ("stage1", 3, 1.0)]


def test_a_run_from_its_start_replaces_all_of_its_stage(tmp_path):
    for reward in (0.0, 1.0):
        with open_log(tmp_path) as log:
            log.log(1, {"reward/mean": reward})
    assert [line["reward/mean"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1.0]


@pytest.mark.parametrize("name", ["accuracy", "rewards/mean", "reward/", "time/a b"])
def test_a_name_of_no_part_is_refused(tmp_path, name):
    with open_log(tmp_path) as log, pytest.raises(ValueError, match="a metric's name starts with"):
        log.log(1, {name: 1.0})
    assert read_lines(tmp_path / "metrics.jsonl") == []


def test_the_console_shows_one_line_a_step_with_the_time_left(tmp_path):
    output = io.StringIO()
    with open_log(tmp_path, output=output) as log:
        log.log(
            4,
            {"reward/mean": 0.84, "rollout/accuracy": 0.5, "tools/calls": 1.25, "learner/loss": 0.1, "time/step": 30.0},
        )
        log.log(4, {"evaluation/accuracy": 0.75})  # no step of its own: the time left stays
        log.log(10, {"reward/mean": 0.9, "time/step": 10.0})
    first, second, last = output.getvalue().splitlines()
    assert first.split("  ") == [
        "stage1 4/10",
        "loss 0.1",
        "reward 0.84",
        "accuracy 0.5",
        "tool calls 1.25",
        "30.0 s",
        "3 min 0 s left",
    ]
    assert second.split("  ") == ["stage1 4/10", "held-out accuracy 0.75", "30.0 s", "3 min 0 s left"]
    assert last.endswith("10.0 s  done")


def test_wandb_records_offline_under_an_id_that_is_kept(tmp_path):
    for step in (1, 2):
        with open_log(tmp_path, wandb="offline") as log:
            log.log(step, {"reward/mean": 0.5 * step})
    kept_id = (tmp_path / "wandb" / "stage1.id").read_text()
    records = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert records
    assert {record.name for record in records} == {f"run-{kept_id}.wandb"}
    while not all(b"reward/mean" in record.read_bytes() for record in records):
        # its core process writes the last records just after `finish` returns; the test's timeout is the limit
        time.sleep(0.05)


def test_wandb_runs_of_two_stages_are_two(tmp_path):
    for stage in ("stage1", "stage2"):
        open_log(tmp_path, wandb="offline", stage=stage).close()
    ids = {path.read_text() for path in (tmp_path / "wandb").glob("*.id")}
    assert len(ids) == 2


def test_disabled_wandb_leaves_nothing(tmp_path):
    with open_log(tmp_path) as log:
        log.log(1, {"time/step": 1.0})
    assert not (tmp_path / "wandb").exists()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["time/step"] == 1.0
