"""`timeline.json` of a run, in Chrome's trace format: who did what from when to when. Perfetto and chrome://tracing open it.

    spans of each actor, fetched once a step -> events "X": process = actor, thread = lane; microseconds since 1970 -> file -> read

The file is a JSON array without its end, a line an event, which the format allows: whatever ends the run, what was written can be read,
and a run that is started again appends. It is bounded: past `MAX_BYTES` it becomes `timeline.old.json` in place of the one before, and a
new one is begun; between two fetches, an actor keeps the newest spans of each kind (`core/spans.py`) and counts the others.

All actors of a node share its wall clock. Those of several nodes are as far apart as the nodes' clocks: below a millisecond with NTP in
one data centre, but nothing here corrects it.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from actors.supervision import describe_error
from arm_rl.core import tracing
from arm_rl.core.tracing import Span, SpanBatch, Track

logger = logging.getLogger(__name__)

FILE, OLD_FILE = "timeline.json", "timeline.old.json"
MAX_BYTES = 64 * 2**20
CLOSE_SECONDS = 3.0  # that the last fetch may take: a learner may be in the middle of a step, or an actor gone

ACTORS = ("driver", "rollout", "learner", "tools", "scorer", "archive")  # kinds, in the order that they are shown in
_encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: there are many lines
TRACKS: tuple[Track, ...] = get_args(Track)
_NUMBERS = 10_000  # actors of a kind, and lanes of a track, before their ids meet those of the next


class Timeline:
    """Fetches spans and writes them."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        """Goes on with the folder's file, or begins it. What this process has recorded so far belongs to somebody else."""
        self._path, self._max_bytes = folder / FILE, max_bytes
        self._fetching: set[asyncio.Task[None]] = set()
        self._named: set[tuple[int, ...]] = set()  # processes and threads whose names are in the file
        self._num_lost = 0
        _repair_file(self._path)
        tracing.take()

    def fetch(self, sources: Mapping[str, Awaitable[SpanBatch]]) -> None:
        """Writes this process's spans, as the driver's, and those of others as they come; nobody waits for them.

        Args:
            sources: by the actor's name: its kind and number, as in "rollout 0".
        """
        for name, source in sources.items():
            task = asyncio.ensure_future(self._receive(name, source))
            self._fetching.add(task)
            task.add_done_callback(self._fetching.discard)
        self.write("driver", tracing.take())

    def write(self, actor: str, recorded: SpanBatch) -> None:
        """Appends an actor's spans."""
        process = _stable_process_id(actor)
        lines: list[str] = []
        self._write_name_events(lines, "process", actor, process)
        for span in recorded.spans:
            thread = TRACKS.index(span.track) * _NUMBERS + span.lane
            self._write_name_events(
                lines,
                "thread",
                f"{span.track} {span.lane}" if span.lane or span.track != "main" else "main",
                process,
                thread,
            )
            lines.append(_format_span(span, process, thread))
        with self._path.open("a") as file:
            file.write("".join(lines))
            size = file.tell()
        self._num_lost += recorded.num_lost
        if size > self._max_bytes:
            self._path.replace(self._path.with_name(OLD_FILE))
            self._named.clear()
            _repair_file(self._path)

    async def close(self) -> None:
        """Waits for what is still to come, but not for long."""
        if self._fetching:
            await asyncio.wait(self._fetching, timeout=CLOSE_SECONDS)
        for task in self._fetching:
            task.cancel()
        if self._num_lost:
            logger.warning(
                "%s: %d spans are missing: there were too many between two steps", self._path, self._num_lost
            )

    async def _receive(self, name: str, source: Awaitable[SpanBatch]) -> None:
        try:
            recorded = await source
        except Exception as error:
            # a tool executor or a scorer may die and come back: the run goes on, and its errors are told elsewhere
            logger.warning("no spans of %s: %s", name, describe_error(error))
            return
        self.write(name, recorded)

    def _write_name_events(self, lines: list[str], of: str, name: str, *ids: int) -> None:
        """Add the events that name and order a process or a thread, once."""
        if ids in self._named:
            return
        self._named.add(ids)
        common = dict(zip(("pid", "tid"), ids, strict=False)) | {"ph": "M"}
        for event in (
            {"name": f"{of}_name", "args": {"name": name}},
            {"name": f"{of}_sort_index", "args": {"sort_index": ids[-1]}},
        ):
            lines.append(json.dumps(event | common) + ",\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A span as it stands in the file."""

    actor: str  # as in "rollout 0"
    lane: int  # its thread's id
    kind: str
    name: str
    start: int  # microseconds since 1970
    end: int
    failed: bool = False  # an error ended it
    details: Mapping[str, Any] = field(default_factory=dict, compare=False)  # as it was recorded

    @property
    def actor_kind(self) -> str:
        """The actor's name without its number."""
        return self.actor.split(" ")[0]


def read(folder: Path) -> list[Event]:
    """The spans of a run folder, the oldest file first; a line that a crash cut short is left out.

    Raises:
        FileNotFoundError: the run wrote no timeline.
    """
    names: dict[int, str] = {}
    events = []
    for line in _read_lines(folder):
        if line["ph"] == "X":
            events.append(
                Event(
                    actor=names[line["pid"]],
                    lane=line["tid"],
                    kind=line["cat"],
                    name=line["name"],
                    start=line["ts"],
                    end=line["ts"] + line["dur"],
                    failed="error" in line.get("args", ()),
                    details=line.get("args", {}),
                )
            )
        elif line["name"] == "process_name":
            names[line["pid"]] = line["args"]["name"]
    return events


def _read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    paths = [path for path in (folder / OLD_FILE, folder / FILE) if path.exists()]
    if not paths:
        raise FileNotFoundError(f"{folder / FILE}")
    for path in paths:
        with path.open() as file:
            yield from (
                json.loads(line.rstrip(",\n")) for line in file if line.startswith("{") and line.endswith(",\n")
            )


def _repair_file(path: Path) -> None:
    """Begin the file, or cut off half a line at its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        size = file.tell()
        file.seek(max(size - 2**16, 0))  # no line is as long
        whole = file.tell() + file.read().rfind(b"\n") + 1
        file.truncate(whole)
        if not whole:
            file.write(b"[\n")


def _stable_process_id(actor: str) -> int:
    """Return a process id that is the same whenever the run is resumed."""
    kind, _, number = actor.partition(" ")
    return (ACTORS.index(kind) + 1) * _NUMBERS + int(number or 0)


def _format_span(span: Span, process: int, thread: int) -> str:
    event = {
        "name": span.name,
        "cat": span.kind,
        "ph": "X",
        "ts": span.start,
        "dur": span.end - span.start,
        "pid": process,
        "tid": thread,
    }
    if span.details:
        event["args"] = span.details
    return _encode(event) + ",\n"
