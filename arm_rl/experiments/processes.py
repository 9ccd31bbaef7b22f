"""The processes of this machine, as Linux lists them: who started whom, what they are, and the time they have taken."""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """One that runs."""

    number: int  # its process id
    parent: int
    command: str  # its words, or the title that it has given itself
    cpu_seconds: float  # taken so far


def read(number: int) -> Process | None:
    """None where it has ended, whether or not its parent has noticed."""
    folder = Path("/proc", str(number))
    try:
        state, parent, *rest = (folder / "stat").read_text().rpartition(")")[2].split()
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (OSError, ValueError):
        return None
    if state == "Z":
        return None
    return Process(
        number=number, parent=int(parent), command=command.strip(), cpu_seconds=(int(rest[9]) + int(rest[10])) / _TICK
    )


def below(root: int) -> Iterator[Process]:
    """Those that a process has started, they in turn, and so on; none where there is no /proc."""
    children: defaultdict[int, list[Process]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*"):
        if (process := read(int(path.name))) is not None:
            children[process.parent].append(process)
    pending = [root]
    while pending:
        for child in children[pending.pop()]:
            pending.append(child.number)
            yield child
