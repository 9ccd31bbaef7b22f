"""A sandbox for one program or for one session's programs: a bubblewrap process seen from outside.

Inside there is `tools/python/sandbox_guest.py` with an interpreter, its standard library and the named packages, all read-only,
a small /tmp, no network, no other process and no right. The guest's init watches what a program uses; this module is the way in, the
way out and the end: whatever happens, closing the sandbox ends all that runs in it.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import platform
import random
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tools.python import seccomp
from tools.python.sandbox_command import GUEST, PACKAGES, SandboxError, bubblewrap_command, interpreter_path
from tools.python.sandbox_guest import LENGTH

logger = logging.getLogger(__name__)

# How a program ended: by itself (`ok`), with an exception, by its process's death, at one of the limits, with processes that could not be
# ended, or with the whole sandbox.
End = Literal["ok", "error", "exited", "timeout", "cpu", "memory", "processes", "output", "leftover", "lost"]

START_SECONDS = 30.0  # a sandbox is up within this, on a busy machine too
GRACE_SECONDS = 5.0  # beyond a program's time, for the init to notice and for the kernel to kill
OWN_IDS = range(0x70000000, 0x80000000)  # user ids that nothing else on a machine uses: each sandbox takes one
# If the machine runs out of memory after all, the kernel ends sandboxes first.
FIRST_TO_GO = ("/bin/sh", "-c", 'echo 1000 > /proc/self/oom_score_adj; exec "$@"', "sh")
HINT = (
    "As root, bubblewrap needs CAP_SYS_ADMIN. As another user, it needs user namespaces: sysctl user.max_user_namespaces above 0, "
    "kernel.unprivileged_userns_clone = 1 and kernel.apparmor_restrict_unprivileged_userns = 0 where these exist. "
    "Docker allows it with --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined, "
    "and for root with --cap-add SYS_ADMIN."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxLimits:
    """What a sandbox may use, all its processes together where nothing else is said."""

    cpu_seconds: float  # for one program
    memory_bytes: int  # files in /tmp included
    tmp_bytes: int  # of /tmp; also the largest file
    processes: int  # and threads
    open_files: int  # of one process
    output_bytes: int  # a program that prints more is ended
    traceback_bytes: int = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramOutcome:
    """What became of a program."""

    end: End
    output: str = ""  # standard output and standard error, the last expression's value, the traceback's end
    code: int = 0  # exit code of a process that died (`exited`), or minus its signal


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxPlan:
    """How sandboxes are made; found once, checked by running a program."""

    command: tuple[str, ...]  # bubblewrap's, without what differs from sandbox to sandbox
    settings: dict[str, Any]  # the guest's
    own_user: bool  # each sandbox under a user id of its own (root can do that), instead of in a user namespace


class Sandbox:
    """A running sandbox. To be made in a thread that lives on: the kernel ends the sandbox with the thread that made it."""

    def __init__(self, plan: SandboxPlan) -> None:
        filter_end, writer = os.pipe()
        os.write(writer, seccomp.build_filter())
        os.close(writer)
        settings = {**plan.settings, "uid": random.choice(OWN_IDS) if plan.own_user else None}
        guest = [interpreter_path(), "-I", "-B", GUEST, json.dumps(settings)]
        self._process = subprocess.Popen(
            [*FIRST_TO_GO, *plan.command, "--seccomp", str(filter_end), "--", *guest],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={},
            cwd="/",
            pass_fds=(filter_end,),
            start_new_session=True,
        )
        os.close(filter_end)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._requests, False)

    @property
    def pid(self) -> int:
        """Of the process outside, which ends when the sandbox has ended."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Return whether the sandbox still runs."""
        return not self._has_ended()

    def run(self, code: str, timeout: float) -> ProgramOutcome:
        """Runs a program for at most that many seconds. After any end but `ok` and `error` the sandbox can only be closed."""
        request = json.dumps({"code": code, "timeout": timeout}).encode()
        deadline = time.monotonic() + START_SECONDS + timeout + GRACE_SECONDS
        try:
            self._send(LENGTH.pack(len(request)) + request, deadline)
            (length,) = LENGTH.unpack(self._receive(LENGTH.size, deadline))
            return ProgramOutcome(**json.loads(self._receive(length, deadline)))
        except OSError:  # a broken pipe, or a TimeoutError
            return ProgramOutcome(end="lost")

    def close(self) -> None:
        """Ends all that runs in it, and returns when it is gone."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()  # the init ends at that, and with it the kernel ends the others
        ended = self._wait_for_end()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                # whether it ended or not: bubblewrap, killed as it starts, leaves a process behind
                os.killpg(self.pid, signal.SIGKILL)
        # the kernel keeps it, in a call that does not return: nothing more can be done
        if not ended and not self._wait_for_end():
            logger.warning("sandbox %d has not ended %g seconds after it was killed", self.pid, GRACE_SECONDS)
        self._process.poll()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def read_startup_error(self) -> str:
        """Kill a sandbox that did not start and return what bubblewrap or the guest wrote to stderr."""
        self._process.kill()
        assert self._process.stderr is not None
        return self._process.stderr.read().decode("utf-8", "replace").strip()

    def _wait_for_end(self) -> bool:
        """Waits for the end, for some seconds."""
        if not self._has_ended():
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                pidfd = os.pidfd_open(self.pid)  # to be woken at once, where Popen.wait looks now and then
                try:
                    _wait(pidfd, select.POLLIN, GRACE_SECONDS)
                finally:
                    os.close(pidfd)
        return self._has_ended()

    def _has_ended(self) -> bool:
        """Leaves the process to be waited for, so that nothing else takes its id before the sandbox is closed."""
        if self._process.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # something else has waited for it
            return True

    def _send(self, data: bytes, deadline: float) -> None:
        while data:
            _wait(self._requests, select.POLLOUT, deadline - time.monotonic())
            data = data[os.write(self._requests, data) :]

    def _receive(self, count: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            _wait(self._replies, select.POLLIN, deadline - time.monotonic())
            chunk = os.read(self._replies, count - len(data))
            if not chunk:
                raise BrokenPipeError
            data += chunk
        return bytes(data)


def _wait(fd: int, event: int, seconds: float) -> None:
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(max(0.0, seconds) * 1000):
        raise TimeoutError


def find_plan(limits: SandboxLimits, *, packages: Sequence[str], preload: Sequence[str], keep: bool) -> SandboxPlan:
    """Return a plan for sandboxes that works on this machine.

    Args:
        packages: distributions that programs can import, with what these require.
        preload: modules that are imported before a program comes.
        keep: a sandbox serves several programs, which share their variables.

    Raises:
        SandboxError: bubblewrap is missing or may not isolate; the message says what to install or to allow.
    """
    return _find_plan(limits, tuple(packages), tuple(preload), keep)


@functools.lru_cache
def _find_plan(limits: SandboxLimits, packages: tuple[str, ...], preload: tuple[str, ...], keep: bool) -> SandboxPlan:
    own_user = _may_take_own_ids()
    if not own_user and _kernel_release() < (5, 14):
        raise SandboxError(
            "code cannot be isolated on this machine: before Linux 5.14, only root can limit the processes of one sandbox"
        )
    found = _make_plan(limits, packages, preload, keep, own_user)
    complaint = _try_plan(found)
    if complaint is not None:
        raise SandboxError(f"code cannot be isolated on this machine: {complaint}. {HINT}")
    return found


def _make_plan(
    limits: SandboxLimits, packages: tuple[str, ...], preload: tuple[str, ...], keep: bool, own_user: bool
) -> SandboxPlan:
    settings = {
        **dataclasses.asdict(limits),
        "keep": keep,
        "preload": preload,
        "packages": PACKAGES,
    }
    return SandboxPlan(
        command=tuple(bubblewrap_command(packages, tmp_bytes=limits.tmp_bytes, own_user=own_user)),
        settings=settings,
        own_user=own_user,
    )


def _try_plan(found: SandboxPlan) -> str | None:
    """Run a program by the plan and return what went wrong; None if the program ran."""
    with ThreadPoolExecutor(1) as maker:
        sandbox = maker.submit(Sandbox, found).result()
        try:
            outcome = sandbox.run("1 + 1", START_SECONDS)
            if outcome == ProgramOutcome(end="ok", output="2\n"):
                return None
            return (
                sandbox.read_startup_error() or f"a first program ended with {outcome.end!r}: {outcome.output.strip()}"
            )
        finally:
            sandbox.close()


def _may_take_own_ids() -> bool:
    """Whether this is root, of a machine or of a container to which all user ids were given."""
    if os.geteuid() != 0:
        return False
    ranges = [[int(number) for number in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= OWN_IDS.start and OWN_IDS.stop <= first + count for first, _, count in ranges)


def _kernel_release() -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", platform.release())
    return (int(match[1]), int(match[2])) if match else (0, 0)
