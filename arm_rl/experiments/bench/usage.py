"""How much CPU time this process and all that it has started have taken, by what they are: for the profile of a benchmark."""

import os
import re
import time
from collections import defaultdict

from arm_rl.experiments.processes import find_descendants

_RAYS_OWN = re.compile(r"ray::(IDLE|\w*Agent)|/ray/(core|dashboard|_private|autoscaler)/")


def cpu_seconds() -> dict[str, float]:
    """Seconds so far, by name: an actor's class, `driver` for this process, `ray` for Ray's own. Linux only; the driver alone elsewhere."""
    seconds: dict[str, float] = defaultdict(float)
    seconds["driver"] = time.process_time()
    for process in find_descendants(os.getpid()):
        seconds[_name(process.command)] += process.cpu_seconds
    return dict(seconds)


def since(before: dict[str, float]) -> dict[str, float]:
    """What has been added, the largest first."""
    added = {name: used - before.get(name, 0.0) for name, used in cpu_seconds().items()}
    return {name: round(used, 3) for name, used in sorted(added.items(), key=lambda item: -item[1]) if used > 0}


def _name(command: str) -> str:
    if _RAYS_OWN.search(command):
        return "ray"
    # ray::Actor.method, /bin/program
    return next(iter(command.split()), "?").removeprefix("ray::").split("/")[-1].split(".")[0]
