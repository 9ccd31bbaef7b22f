"""Processes that a test starts."""

import psutil


def started() -> set[int]:
    """Return the ids of this process's descendants, without those of the test worker's Ray, which come and go."""
    own = [child for child in psutil.Process().children() if not _is_of_ray(child)]
    return {process.pid for child in own for process in (child, *_descendants(child))}


def _is_of_ray(process: psutil.Process) -> bool:
    try:
        return any("/ray/" in word for word in process.cmdline()[:3])  # a program or script of Ray's package
    except psutil.Error:
        return False


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
