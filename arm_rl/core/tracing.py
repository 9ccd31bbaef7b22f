"""Spans: what a process did from when to when, kept in a small buffer until they are fetched. Pure: no Ray, no files.

    with span("turn"): ...  ->  the process's recorder  ->  take()  ->  SpanBatch  ->  arm_rl/run/timeline.py writes

A process has one recorder, as it has one log: an actor is a process, and what it runs need not know that it is recorded. The spans of a
task (or a thread) that lie inside one another share a lane; tasks that run at the same time have lanes of their own, each the lowest that
is free, so that hundreds of sessions one after the other need as many lanes as run at once.

Nothing waits for a device: on a GPU, the span of a forward pass is the time to launch it, and the time to run it is in the first span
that reads a result.
"""

import asyncio
import functools
import heapq
import inspect
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar

MAX_SPANS = 8192  # of one kind that are kept between two fetches: the newest ones

Track = Literal["main", "group", "session", "weights", "call"]  # lanes that belong together

F = TypeVar("F", bound=Callable[..., Any])

# fixed, so that spans nest exactly even where the wall clock is set meanwhile
_WALL_CLOCK = time.time_ns() - time.perf_counter_ns()


def now() -> int:
    """Nanoseconds since 1970, never going back."""
    return _WALL_CLOCK + time.perf_counter_ns()


class Span(NamedTuple):
    """Something that was done. A tuple, because there are many and they travel."""

    kind: str  # turn, tool, forward, ...: what tables sum over
    name: str  # what is shown: the kind, or more exactly what
    track: Track
    lane: int  # in the track, from 0
    start: int  # microseconds since 1970
    end: int
    details: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanBatch:
    """What was recorded since the last fetch."""

    spans: list[Span]  # finished ones, by start; what encloses comes before what it encloses
    num_lost: int  # spans that found no place


class Recorder:
    """Keeps the newest spans of each kind. For any number of tasks and threads."""

    def __init__(self, max_spans: int = MAX_SPANS, clock: Callable[[], int] = now) -> None:
        """An empty one.

        Args:
            max_spans: of each kind, so that many short ones do not push out a long one.
            clock: gives nanoseconds since 1970, and never goes back.
        """
        self._clock = clock
        self._max_spans = max_spans
        self._lock = threading.Lock()
        self._spans = self._no_spans()
        self._num_recorded = 0
        self._holders: dict[Hashable, _LaneHolder] = {}  # of tasks and threads with an open span
        self._free: defaultdict[Track, list[int]] = defaultdict(list)  # lanes that were used and left: heaps
        self._num_lanes: defaultdict[Track, int] = defaultdict(int)

    def span(self, kind: str, *, name: str = "", track: Track = "main", **details: Any) -> "OpenSpan":
        """A context manager that records how long it was open; with the error's type, if one passed.

        Args:
            kind: of the span.
            name: what is shown instead of the kind.
            track: of its lane; inside another span of the same task, that one's lane is taken.
            details: small values that JSON knows.
        """
        return OpenSpan(self, kind, name or kind, track, details)

    def take(self) -> SpanBatch:
        """Hands over the finished spans and forgets them."""
        with self._lock:
            kinds, self._spans = self._spans, self._no_spans()
            num_recorded, self._num_recorded = self._num_recorded, 0
        spans = sorted((span for kind in kinds.values() for span in kind), key=lambda span: (span.start, -span.end))
        return SpanBatch(spans=spans, num_lost=num_recorded - len(spans))

    def _no_spans(self) -> defaultdict[str, deque[Span]]:
        return defaultdict(lambda: deque(maxlen=self._max_spans))

    def _enter(self, track: Track) -> "_LaneHolder":
        owner = _owner()
        holder = self._holders.get(owner)  # only the owner itself adds and removes it
        if holder is None:
            with self._lock:
                free = self._free[track]
                if not free:
                    free.append(self._num_lanes[track])
                    self._num_lanes[track] += 1
                holder = self._holders[owner] = _LaneHolder(owner, track, heapq.heappop(free))
        holder.depth += 1
        return holder

    def _leave(self, holder: "_LaneHolder", span: Span) -> None:
        holder.depth -= 1
        with self._lock:
            self._spans[span.kind].append(span)
            self._num_recorded += 1
            if not holder.depth:
                del self._holders[holder.owner]
                heapq.heappush(self._free[holder.track], holder.lane)


class OpenSpan:
    """A span that goes on; what `Recorder.span` gives."""

    __slots__ = ("_details", "_holder", "_kind", "_name", "_recorder", "_start", "_track")

    def __init__(self, recorder: Recorder, kind: str, name: str, track: Track, details: dict[str, Any]) -> None:
        self._recorder, self._kind, self._name, self._track, self._details = recorder, kind, name, track, details

    def __enter__(self) -> None:
        self._holder = self._recorder._enter(self._track)
        self._start = self._recorder._clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # times are cut, both in the same way: what lies inside another span stays inside
        end = self._recorder._clock() // 1000
        details = self._details if kind is None else {**self._details, "error": kind.__name__}
        holder = self._holder
        self._recorder._leave(
            holder, Span(self._kind, self._name, holder.track, holder.lane, self._start // 1000, end, details)
        )


class _LaneHolder:
    """The lane of a task or a thread, for as long as it has an open span."""

    __slots__ = ("depth", "lane", "owner", "track")

    def __init__(self, owner: Hashable, track: Track, lane: int) -> None:
        self.owner, self.track, self.lane, self.depth = owner, track, lane, 0


_RECORDER = Recorder()  # the process's
span = _RECORDER.span
take = _RECORDER.take


def recorded(kind: str, *, track: Track = "main") -> Callable[[F], F]:
    """A decorator: each call of the function, plain or async, is a span."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with span(kind, track=track):
                return function(*args, **kwargs)

        @functools.wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with span(kind, track=track):
                return await function(*args, **kwargs)

        return call_async if inspect.iscoroutinefunction(function) else call  # type: ignore[return-value]

    return decorate


def _owner() -> Hashable:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return threading.get_ident() if task is None else task
