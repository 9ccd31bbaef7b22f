"""Processes that end with their owner, however hard the owner ends.

- A process that its owner has started directly calls `die_with_parent`.
- Any other process of this project calls `die_with`.
- A command that is not ours is started as `tie_to_parent`, or as `tie_group_to_owner` if it starts processes of its own.

Launchers run this file by its path, so it imports only the standard library.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1  # prctl: a signal to this process when the thread that started it ends
# Isolated: the folder of this file, whose names hide modules of the standard library, is not on the path.
_LAUNCHER = (sys.executable, "-IS", __file__)


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the thread that started it ends, even while this process hangs in C code.

    Args:
        parent: Process id of the owner.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the request
        os._exit(1)


def die_with(owner: int) -> None:
    """Start a thread that kills this process when the process `owner` ends; do nothing if that is this process."""

    def watch() -> None:
        with contextlib.suppress(ProcessLookupError):  # ended already
            end = select.poll()
            end.register(os.pidfd_open(owner), select.POLLIN)  # readable when the process ends
            end.poll()
        os.kill(os.getpid(), signal.SIGKILL)

    if owner != os.getpid():
        threading.Thread(target=watch, name="owner-watch", daemon=True).start()


def tie_to_parent(command: Sequence[str]) -> list[str]:
    """Return a command line that becomes `command`, which the kernel kills with the thread that starts it."""
    return [*_LAUNCHER, "exec", str(os.getpid()), *command]


def tie_group_to_owner(command: Sequence[str], grace_seconds: float) -> list[str]:
    """Return a command line that runs `command` and ends it, with all that it starts, when its owner is gone.

    The owner keeps the other end of its standard input open; the system closes it when the owner is killed. The command's
    process group then gets SIGTERM, and SIGKILL after `grace_seconds`.
    """
    return [*_LAUNCHER, "group", str(grace_seconds), *command]


def _exec(parent: str, *command: str) -> None:
    die_with_parent(int(parent))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


def _run_group(grace_seconds: str, *command: str) -> None:
    def end_with_owner() -> None:
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGTERM)
        threading.Event().wait(float(grace_seconds))
        os.killpg(0, signal.SIGKILL)

    if os.getpgrp() != os.getpid():
        os.setpgrp()  # else the signals would reach the owner's group
    signal.signal(signal.SIGTERM, lambda *_: None)  # the command gets it too, and its end ends this process
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=end_with_owner, daemon=True).start()
    sys.exit(process.wait())


if __name__ == "__main__":
    {"exec": _exec, "group": _run_group}[sys.argv[1]](*sys.argv[2:])
