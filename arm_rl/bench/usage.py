"""How much CPU time this process and all that it has started have taken, by what they are: for the profile of a benchmark."""

import os
import re
from collections import defaultdict
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_RAYS_OWN = re.compile(r"ray::(IDLE|\w*Agent)|/ray/(core|dashboard|_private|autoscaler)/")


def cpu_seconds() -> dict[str, float]:
    """Seconds so far, by name: an actor's class, `driver` for this process, `ray` for Ray's own. Linux only; empty elsewhere."""
    seconds: dict[str, float] = defaultdict(float)
    processes = {int(path.name): found for path in Path("/proc").glob("[0-9]*") if (found := _read(path)) is not None}
    for number, (_, name, used) in processes.items():
        if number == os.getpid():
            seconds["driver"] += used
        elif _descends(number, processes):
            seconds[name] += used
    return dict(seconds)


def since(before: dict[str, float]) -> dict[str, float]:
    """What has been added, the largest first."""
    added = {name: used - before.get(name, 0.0) for name, used in cpu_seconds().items()}
    return {name: round(used, 3) for name, used in sorted(added.items(), key=lambda item: -item[1]) if used > 0}


def _read(path: Path) -> tuple[int, str, float] | None:
    """A process's parent, name and CPU seconds; None where it has ended."""
    try:
        fields = (path / "stat").read_text().rpartition(")")[2].split()
        command = (path / "cmdline").read_text().replace("\0", " ").split()
    except (OSError, UnicodeDecodeError):
        return None
    if any(_RAYS_OWN.search(word) for word in command):
        name = "ray"
    else:
        name = next(iter(command), "?").removeprefix("ray::").split("/")[-1].split(".")[0]  # ray::Actor.method, /bin/program
    return int(fields[1]), name, (int(fields[11]) + int(fields[12])) / _TICK


def _descends(number: int, processes: dict[int, tuple[int, str, float]]) -> bool:
    """Whether this process is an ancestor."""
    while number in processes:
        number = processes[number][0]
        if number == os.getpid():
            return True
    return False
