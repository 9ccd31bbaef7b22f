"""The parts of a run as its timeline and its metrics tell them: turns, calls, batches, updates; for a simulation that puts them together
again."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.types import Batch, Sample, Trajectory
from arm_rl.plan.simulation import Version, spread_rewards, trajectory, turn
from arm_rl.run.timeline import Event, read
from arm_rl.training.group import number_of

_SECOND = 1e6  # of a timeline's microseconds
_NEAR = 8  # groups before and after, that a group is drawn from


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Seconds of what a run's actors did."""

    groups: tuple[tuple[tuple[float, ...], ...], ...]  # of each group its sessions: turn, call, turn, ...
    scores: tuple[float, ...]
    trains: tuple[float, ...]
    publishes: tuple[float, ...]
    updates: tuple[float, ...]
    kept: tuple[float, ...]  # of each step: share of its groups that were not flat
    # what the run itself took for each step: not an input, but what a simulation is compared with
    steps: tuple[float, ...]

    @classmethod
    def of(cls, folder: Path) -> "Parts":
        """Of a run's folder."""
        events = read(folder)
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [row for row in metrics if "time/step" in row]
        return cls(
            groups=_groups(events),
            scores=_seconds(events, "score", "scorer"),
            trains=_seconds(events, "train", "learner"),
            publishes=_seconds(events, "publish", "learner"),
            updates=_seconds(events, "update", "rollout"),
            kept=tuple(row["rollout/groups_kept"] for row in steps),
            steps=tuple(row["time/step"] for row in steps),
        )


def _seconds(events: Sequence[Event], kind: str, actor_kind: str) -> tuple[float, ...]:
    return tuple(
        (event.end - event.start) / _SECOND for event in events if event.kind == kind and event.actor_kind == actor_kind
    )


def _groups(events: Sequence[Event]) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Sessions of training, by group: what lies in a session's lane while it goes on is its own."""
    lanes: defaultdict[tuple[str, int], list[Event]] = defaultdict(list)
    for event in events:
        if event.kind in ("session", "turn", "tool") and event.actor_kind == "rollout":
            lanes[event.actor, event.lane].append(event)
    groups: defaultdict[str, list[tuple[float, ...]]] = defaultdict(list)
    for lane in lanes.values():
        lane.sort(key=lambda event: (event.start, -event.end))
        for place, event in enumerate(lane):
            if event.kind != "session" or not event.details["group"].partition("/")[0].isdigit():
                continue
            inside = []
            for one in lane[place + 1 :]:
                if one.kind == "session":
                    break
                inside.append((one.end - one.start) / _SECOND)
            groups[event.details["group"]].append(tuple(inside))
    return tuple(tuple(groups[name]) for name in sorted(groups, key=number_of))


class MeasuredRollouts:
    """Groups drawn from those that were measured at about the same place of the run: a machine is not as busy all the time."""

    def __init__(self, parts: Parts, config: TrainConfig) -> None:
        self._parts = parts
        self._source = np.random.default_rng(config.run.seed)
        self._slots = [
            asyncio.Semaphore(config.rollout.max_concurrent_sessions) for _ in range(config.rollout.num_actors)
        ]
        self._num_updates = 0

    async def group(self, engine: int, sample: Sample, group_id: str, size: int, version: Version) -> list[Trajectory]:
        """One that was measured, as a whole: its sessions go together."""
        near = (number_of(group_id) + self._source.integers(-_NEAR, _NEAR + 1)) % len(self._parts.groups)
        sessions = self._parts.groups[near]

        async def session(index: int) -> Trajectory:
            async with self._slots[engine]:
                turns = []
                for place, seconds in enumerate(sessions[index]):
                    started = version.number
                    await asyncio.sleep(seconds)
                    if place % 2 == 0:
                        turns.append(turn(1, (), started))
            return trajectory(sample, group_id, index, (0,), turns)

        return list(await asyncio.gather(*(session(index) for index in range(size))))

    def rewards(self, group_id: str, size: int) -> list[float]:
        """Flat as often as in the measured step that trains next."""
        kept = self._parts.kept[min(self._num_updates, len(self._parts.kept) - 1)]
        return spread_rewards(size) if self._source.random() < kept else [1.0] * size

    def score_seconds(self) -> float:
        """Any of those that were measured."""
        return float(self._source.choice(self._parts.scores))

    async def update(self, engine: int) -> None:
        """The engine's next one."""
        await asyncio.sleep(self._parts.updates[self._num_updates % len(self._parts.updates)])
        self._num_updates += 1

    async def sleep(self, engine: int) -> None:
        """Takes no time on CPU."""


class MeasuredLearning:
    """Batch after batch as they were measured."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._num_trained, self._num_published = parts, 0, 0

    def train(self, batch: Batch) -> float:
        """The next one's."""
        self._num_trained += 1
        return self._parts.trains[(self._num_trained - 1) % len(self._parts.trains)]

    def score(self, batch: Batch) -> float:
        """A step of one update scores nothing apart."""
        raise NotImplementedError("learner passes without training were not measured")

    def publish(self) -> float:
        """The next one's."""
        self._num_published += 1
        return self._parts.publishes[(self._num_published - 1) % len(self._parts.publishes)]
