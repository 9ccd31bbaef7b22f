"""Where the time of a step went, from a run's timeline: what each kind of actor did, and who waited for whom.

Times are those during which an actor does something at least once, however many sessions do it, within the steps that are finished; of
several actors of a kind the mean. Evaluations and checkpoints between the steps are left out.
"""

from bisect import bisect
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from arm_rl.run.timeline import ACTORS, Event

Intervals = list[tuple[int, int]]  # sorted and apart, microseconds

# kinds of spans: an engine's work, a learner's, new weights in an engine
SAMPLES, TRAINS, SYNCS = {"turn"}, {"train", "score"}, {"update"}


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeRow:
    """A line of the table; times of a step in the mean."""

    actor: str  # kind
    phase: str
    seconds: float  # during which it goes on
    share: float  # of the step
    count: float  # spans begun in a step, of all actors of the kind; 0 where the row is reckoned


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """The table."""

    num_steps: int
    phases: list[TimeRow]  # what was recorded, by actor; phases may lie inside one another
    waits: list[TimeRow]  # engines and learners, busy and idle, and what for
    # of the shorter of both: the share of an engine's or a learner's work during which the other side works too
    overlap: float


def step_times(events: Sequence[Event]) -> StepTimes:
    """The table of a run, its parts for a step in the mean.

    Raises:
        ValueError: no step was finished.
    """
    steps = [event for event in events if event.actor_kind == "driver" and event.kind == "step" and not event.failed]
    if not steps:
        raise ValueError("no step was finished")
    times = _Times(events, union((step.start, step.end) for step in steps), len(steps))
    engines, learners = times.busy("rollout", SAMPLES, SYNCS), times.busy("learner", TRAINS)
    either = intersection(engines, learners)
    waits = [
        *times.engine_waits(learners),
        *times.learner_waits(),
        times.make_row("both", "engines and learners work", [either]),
        times.make_row("both", "neither works", [difference(times.window, union([*engines, *learners]))]),
    ]
    overlap = total(either) / (min(total(engines), total(learners)) or 1)
    return StepTimes(num_steps=len(steps), phases=times.phases(), waits=waits, overlap=overlap)


class _Times:
    """Intervals of all kinds, cut to the steps."""

    def __init__(self, events: Iterable[Event], window: Intervals, num_steps: int) -> None:
        self.window, self._num_steps = window, num_steps
        spans: defaultdict[tuple[str, str], Intervals] = defaultdict(list)  # actor, kind
        for event in events:
            spans[event.actor, event.kind].append((event.start, event.end))
        self._counts = {key: sum(_is_within(start, window) for start, _ in found) for key, found in spans.items()}
        self._spans = {key: intersection(union(found), window) for key, found in spans.items()}
        self._actors = sorted(
            {actor for actor, _ in self._spans}, key=lambda actor: (ACTORS.index(actor.split(" ")[0]), actor)
        )

    def actors(self, kind: str) -> list[str]:
        return [actor for actor in self._actors if actor.split(" ")[0] == kind]

    def intervals(self, actor: str, kinds: Collection[str]) -> Intervals:
        return union(interval for kind in kinds for interval in self._spans.get((actor, kind), ()))

    def busy(self, actor_kind: str, kinds: Collection[str], excluding: Collection[str] = ()) -> Intervals:
        """When any actor of a kind works."""
        return union(
            one
            for actor in self.actors(actor_kind)
            for one in difference(self.intervals(actor, kinds), self.intervals(actor, excluding))
        )

    def make_row(self, actor: str, phase: str, of_actors: Sequence[Intervals], count: float = 0.0) -> TimeRow:
        microseconds = sum(map(total, of_actors)) / max(len(of_actors), 1)
        seconds = microseconds / self._num_steps / 1e6
        return TimeRow(
            actor=actor,
            phase=phase,
            seconds=seconds,
            share=microseconds / (total(self.window) or 1),
            count=count / self._num_steps,
        )

    def phases(self) -> list[TimeRow]:
        rows = []
        for actor_kind in ACTORS:
            actors = self.actors(actor_kind)
            kinds = dict.fromkeys(kind for actor, kind in self._spans if actor in actors)
            counts = {kind: sum(self._counts.get((one, kind), 0) for one in actors) for kind in kinds}
            found = [
                self.make_row(actor_kind, kind, [self.intervals(one, {kind}) for one in actors], counts[kind])
                for kind in kinds
            ]
            rows += sorted((row for row in found if row.seconds or row.count), key=lambda row: -row.seconds)
        return rows

    def engine_waits(self, learners: Intervals) -> list[TimeRow]:
        """What an engine does, and what it waits for where no session of it has a turn: the first reason counts."""
        reasons: defaultdict[str, list[Intervals]] = defaultdict(list)
        hidden: list[Intervals] = []
        syncing = self.busy("driver", {"sync"})
        for actor in self.actors("rollout"):
            updates, tools = self.intervals(actor, SYNCS), self.intervals(actor, {"tool"})
            works = difference(self.intervals(actor, SAMPLES), updates)
            hidden.append(intersection(tools, works))
            left = self.window
            for reason, when in {
                "works: turns are sampled": works,
                "idle: takes new weights": updates,
                "idle: its sessions wait for tools": tools,
                "idle: waits for the learners": learners,
                "idle: waits for new weights": syncing,
                "idle: other (scoring, other engines, the driver)": self.window,
            }.items():
                reasons[reason].append(intersection(left, when))
                left = difference(left, when)
        rows = [self.make_row("engine", reason, of_actors) for reason, of_actors in reasons.items()]
        return [*rows, self.make_row("engine", "works while sessions wait for tools (hidden)", hidden)] if rows else []

    def learner_waits(self) -> list[TimeRow]:
        """What a learner does, and where the driver is while it does nothing."""
        reasons: defaultdict[str, list[Intervals]] = defaultdict(list)
        for actor in self.actors("learner"):
            left = self.window
            for reason, when in {
                "works": self.intervals(actor, TRAINS),
                "idle: waits for groups": self.busy("driver", {"rollout"}),
                "idle or publishing: engines take new weights": self.busy("driver", {"sync"}),
                "idle: other (batches, transport)": self.window,
            }.items():
                reasons[reason].append(intersection(left, when))
                left = difference(left, when)
        return [self.make_row("learner", reason, of_actors) for reason, of_actors in reasons.items()]


def union(intervals: Iterable[tuple[int, int]]) -> Intervals:
    """The times that are in any of the intervals."""
    merged: Intervals = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            if end > merged[-1][1]:
                merged[-1] = (merged[-1][0], end)
        elif end > start:
            merged.append((start, end))
    return merged


def intersection(first: Intervals, second: Intervals) -> Intervals:
    """The times that are in both."""
    common: Intervals = []
    one = two = 0
    while one < len(first) and two < len(second):
        start, end = max(first[one][0], second[two][0]), min(first[one][1], second[two][1])
        if start < end:
            common.append((start, end))
        if first[one][1] < second[two][1]:
            one += 1
        else:
            two += 1
    return common


def difference(first: Intervals, second: Intervals) -> Intervals:
    """The times that are in the first but not in the second."""
    if not first:
        return []
    start, end = first[0][0], first[-1][1]
    bounds = [start, *(bound for interval in second for bound in interval), end]
    gaps = union(
        (max(low, start), min(high, end)) for low, high in zip(bounds[::2], bounds[1::2], strict=True) if low < high
    )
    return intersection(first, gaps)


def total(intervals: Intervals) -> int:
    """Microseconds in all."""
    return sum(end - start for start, end in intervals)


def _is_within(moment: int, window: Intervals) -> bool:
    place = bisect(window, moment, key=lambda interval: interval[0]) - 1
    return place >= 0 and moment < window[place][1]
