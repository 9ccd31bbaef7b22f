"""What the jobs' command lines say when they end, and of errors of the machine that a user can mend: one line, no traceback."""

import errno
import os

import pytest
from ray.exceptions import ObjectStoreFullError, RayTaskError

from jobs.command_line import INTERRUPTED, run_guarded

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
