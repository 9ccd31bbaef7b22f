"""What the jobs' command lines say when they end, and of errors of the machine that a user can mend: one line, no traceback."""

import errno
import logging
import os
import re
import signal
from contextlib import nullcontext

import pytest
from ray.exceptions import ObjectStoreFullError, RayTaskError

from arm_rl.core.stage_config import TrainConfig
from arm_rl.training.graceful_stop import StoppedOnRequest
from jobs import train
from jobs.command_line import INTERRUPTED, run_guarded, run_job

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/metrics.jsonl")
FULL = {
    "disk": (NO_SPACE, "error: OSError: [Errno 28] No space left on device: 'runs/x/metrics.jsonl'"),
    "wrapped": (
        OSError("I/O error: No space left on device (os error 28)"),
        "error: OSError: I/O error: No space left on device (os error 28)",
    ),
    "in an actor": (
        RayTaskError("save", "a long trace", NO_SPACE).as_instanceof_cause(),
        "error: OSError: [Errno 28] No space left on device: 'runs/x/metrics.jsonl'",
    ),
    "object store": (ObjectStoreFullError("no room for 9 bytes"), "error: "),
}


@pytest.mark.parametrize(("error", "told"), FULL.values(), ids=FULL)
def test_no_room_is_told_in_one_line(capsys, error, told):
    def job():
        raise error

    assert run_guarded(job, resume_hint="it goes on") == 1
    said = capsys.readouterr().err
    assert said.startswith(told)
    assert said.endswith("; it goes on\n")
    assert said.count("\n") == 1


def test_any_other_error_of_the_system_is_a_fault():
    def job():
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    with pytest.raises(OSError, match="Bad file descriptor"):
        run_guarded(job)


@pytest.mark.parametrize(
    ("options", "said"), [({}, "interrupted\n"), ({"resume_hint": "it goes on"}, "interrupted; it goes on\n")]
)
def test_after_ctrl_c_only_a_job_that_goes_on_says_so(options, said, capsys):
    def start() -> str:
        raise KeyboardInterrupt

    assert run_guarded(start, **options) == INTERRUPTED
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("by", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_ends_with_the_status_of_its_signal(by, status):
    def start() -> str:
        raise StoppedOnRequest("stopped as asked", by)

    assert run_guarded(start) == status


def test_a_job_reports_its_phases_and_the_command_that_shows_the_result(monkeypatch, caplog, capsys):
    async def train_nothing(config):
        pass

    monkeypatch.setattr("actors.cluster.connection.cluster", nullcontext)
    monkeypatch.setattr("arm_rl.training.grpo.train_grpo", train_nothing)
    caplog.set_level(logging.INFO)
    assert run_job("train", "", TrainConfig, train.run, argv=["configs/arm_thinker_stage1.yaml"]) == 0
    phases = [message for message in caplog.messages if re.search(r"\(\d+ s after the start\)", message)]
    assert [message.partition(":")[0] for message in phases] == ["configuration", "Ray"]
    assert "`python -m jobs.report runs/arm_thinker_stage1` shows" in capsys.readouterr().out
