"""The processes that a process has started: their command lines, and the CPU time that they have used."""

import contextlib
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, kw_only=True, slots=True)
class Descendant:
    """A running process that another one has started, directly or through others."""

    pid: int
    command: str  # command line, or the title that the process has given itself
    cpu_seconds: float  # used so far


def find_descendants(root: int) -> list[Descendant]:
    """Return the descendants of a process that have not ended; none where the process itself has ended."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(root).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # ended meanwhile
                command, used = " ".join(process.cmdline()), process.cpu_times()
                found.append(Descendant(pid=process.pid, command=command, cpu_seconds=used.user + used.system))
    return found


def is_alive(pid: int) -> bool:
    """Return whether a process runs. One that has ended and waits for its parent (a zombie) does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
