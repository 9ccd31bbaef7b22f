"""Ctrl-C in the middle of a run: one line, the right exit status, no process left, and the run goes on afterwards."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from arm_rl.run.metrics_log import read_lines
from tests.support import small_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MARK = "ARM_RL_TEST_RUN"  # in the environment of every process that the run starts


def marked(mark: str) -> list[psutil.Process]:
    """Processes of the run that still live."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_ctrl_c_leaves_nothing_behind(tmp_path, judge_folder):
    small_run.write_data(tmp_path, 64)
    keys = ("algorithm.samples_per_step=2", "algorithm.group_size=2", "checkpoint.every=0")
    arguments = small_run.overrides(tmp_path, judge_folder, *keys)
    command = [sys.executable, "-m", "jobs.train", "configs/demo.yaml", *arguments]
    mark = uuid.uuid4().hex
    run = subprocess.Popen(
        command,
        env={**os.environ, MARK: mark},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell lets its background jobs ignore it
    )
    wait_for_steps(tmp_path / "stage2" / "metrics.jsonl", run, 2)
    os.killpg(run.pid, signal.SIGINT)  # a terminal sends it to the whole group
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 130, errors
    assert "goes on from its last checkpoint" in errors
    assert "Traceback" not in errors
    phases = [line for line in errors.splitlines() if "s after the start)" in line]
    begun = ["configuration", "Ray", "data and model checked", "engines", "learners", "step 1 of"]
    assert [part in line for part, line in zip(begun, phases, strict=True)] == [True] * len(begun)
    limit = time.monotonic() + 20
    while marked(mark) and time.monotonic() < limit:
        time.sleep(0.5)
    assert [process.cmdline() for process in marked(mark)] == []
    logged = read_lines(tmp_path / "stage2" / "metrics.jsonl")[-1]["step"]
    assert (
        tmp_path / "stage2" / "checkpoints" / str(logged)
    ).is_dir()  # written on Ctrl-C: nothing that was done is lost


def wait_for_steps(file: Path, run: subprocess.Popen, number: int) -> None:
    """Returns once the run has logged so many steps; the test's time limit is the patience."""
    while len(read_lines(file)) < number:
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.5)
