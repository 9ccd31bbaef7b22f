"""The demo over seeds and arithmetics: which runs are started, and the table of their numbers."""

import json
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from arm_rl.core.config import ConfigError
from arm_rl.demo import robustness
from arm_rl.demo.robustness import ARITHMETICS
from jobs import demo


def summary(accuracy: float) -> dict:
    stage2 = {"accuracy": accuracy, "worst_pair_accuracy": accuracy - 0.05, "accuracy_without_tools": 0.5}
    return {"sft": {"accuracy": 0.6}, "stage2": stage2, "seconds": {"base": 60.0, "sft": 30.0}}


@pytest.fixture
def started(monkeypatch) -> list[dict]:
    """Runs that were started; each writes a summary at once, but seed 1 with one thread fails."""
    runs: list[dict] = []

    def run(command, *, env, **_):
        folder = Path(command[command.index("--out") + 1])
        runs.append({"name": folder.name, "command": command, "env": env})
        if folder.name == "seed1-one-thread":
            return subprocess.CompletedProcess(command, 1)
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps(summary(0.9 + len(runs) / 100)))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(robustness.subprocess, "run", run)
    return runs


def test_every_seed_runs_in_every_arithmetic_with_its_environment(tmp_path, started, capsys):
    assert demo.main(["--robustness", "--seeds", "2", "--out", str(tmp_path)]) == 1
    assert [run["name"] for run in started] == [f"seed{seed}-{name}" for seed in (0, 1) for name in ARITHMETICS]
    scalar = started[1]
    assert scalar["env"]["ATEN_CPU_CAPABILITY"] == "default"
    assert scalar["command"][scalar["command"].index("--arithmetic") + 1] == "scalar"
    rows = json.loads((tmp_path / "robustness.json").read_text())
    assert rows["seed0-scalar"]["after stage 2"] == 0.92
    assert rows["seed0-scalar"]["minutes"] == 1.5
    assert set(rows) == {run["name"] for run in started[:5]}
    assert "1 runs failed (seed1-one-thread)" in capsys.readouterr().err


def test_the_table_ends_with_median_and_extremes():
    rows = {f"seed{seed}": robustness.row(summary(accuracy)) for seed, accuracy in enumerate((0.95, 0.99, 0.97))}
    console = Console(width=120, record=True, file=None, quiet=True)
    console.quiet = False
    with console.capture() as shown:
        console.print(robustness.table(rows))
    lines = [line for line in shown.get().splitlines() if any(word in line for word in ("median", "lowest", "highest"))]
    assert ["0.97" in lines[0], "0.95" in lines[1], "0.99" in lines[2]] == [True] * 3


def test_an_arithmetic_without_its_environment_is_refused(tmp_path, monkeypatch, capsys):
    for name in ("ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert demo.main(["--arithmetic", "scalar", "--out", str(tmp_path)]) == 1
    assert "set the environment variable ATEN_CPU_CAPABILITY=default" in capsys.readouterr().err
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    ARITHMETICS["scalar"].require_environment("--arithmetic scalar")
    with pytest.raises(ConfigError, match="OMP_NUM_THREADS=1"):
        ARITHMETICS["one-thread"].require_environment("--arithmetic one-thread")
