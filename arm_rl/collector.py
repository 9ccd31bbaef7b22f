"""Keeps groups running as far ahead of the learners as `algorithm.max_staleness` allows, and gives each step its groups.

    cursor -> groups that run -> finished ones -> the step: kept, flat, too old

One rule serves synchronous and asynchronous runs: before step s ends, (s + 1 + max_staleness) * samples_per_step groups may have been
started. With 0, a step's groups start when the step does, and it waits for all of them; with more, the learners take the first ones that
are finished, while others run on, through updates of the weights too. A group that is dropped gives its place to a new one.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol

from arm_rl.core.advantage import is_flat
from arm_rl.core.config import TrainConfig
from arm_rl.core.types import Sample
from arm_rl.data import Cursor
from arm_rl.groups import Group, RunStopped


class Groups(Protocol):
    """Runs one group of sessions and scores it."""

    async def group(self, sample: Sample, group_id: str, *, size: int, temperature: float) -> Group:
        """The scored group."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What a step gets."""

    groups: list[Group]  # all that were finished for it and not too old
    kept: list[Group]  # those of them that have something to teach
    num_too_old: int  # groups that were dropped for their age

    def metrics(self, version: int) -> dict[str, float]:
        """In numbers; `version` is that of the weights that the step starts from."""
        tokens: Counter[int] = Counter()  # by their age
        for group in self.kept:
            for turn in group.turns:
                if turn.token_ids:
                    tokens[version - turn.policy_version] += len(turn.token_ids)
        num_tokens = max(tokens.total(), 1)
        return {
            "rollout/groups_kept": len(self.kept) / len(self.groups),
            "rollout/groups_too_old": float(self.num_too_old),
            "rollout/staleness": sum(age * number for age, number in tokens.items()) / num_tokens,
            "rollout/staleness_max": float(max(tokens, default=0)),
            "rollout/stale_token_share": sum(number for age, number in tokens.items() if age > 0) / num_tokens,
        }


@dataclass(slots=True)
class _Running:
    """A group on its way."""

    number: int  # of all that were started: decides the order in a batch, and the seeds
    sample: Sample
    task: "asyncio.Task[Group]"


class Collector:
    """Draws samples and runs them. `max_staleness` is in steps."""

    def __init__(self, config: TrainConfig, runner: Groups, cursor: Cursor) -> None:
        self._algorithm, self._temperature = config.algorithm, config.rollout.temperature
        self._runner, self._cursor = runner, cursor
        self._running: list[_Running] = []  # finished ones too, until a step takes them; by number
        self._num_started = 0  # groups that count against the rule: those that were dropped do not
        self._next_number = 0

    async def collect(self, step: int) -> Collected:
        """The groups of a step. Its weights have the version `step`.

        Raises:
            RunStopped: whatever was drawn, all of it was flat.
        """
        algorithm = self._algorithm
        groups: list[tuple[int, Group]] = []
        num_filled = num_too_old = 0  # places of the step that are taken, and groups that were dropped for their age
        while num_filled < algorithm.samples_per_step:
            self._start(step)
            for one in await self._finished(algorithm.samples_per_step - num_filled):
                self._running.remove(one)
                group = one.task.result()
                if group.age(step) > algorithm.max_staleness:
                    num_too_old += 1
                    self._num_started -= 1
                    continue
                groups.append((one.number, group))
                if self._dropped(group) and algorithm.refill_flat:
                    self._num_started -= 1
                else:
                    num_filled += 1
            if all(self._dropped(group) for _, group in groups):  # nothing to learn from so far
                self._stop_after(step, len(groups))
                if num_filled == algorithm.samples_per_step:  # the step draws anew
                    self._num_started -= num_filled
                    num_filled = 0
        ordered = [group for _, group in sorted(groups, key=lambda pair: pair[0])]
        return Collected(groups=ordered, kept=[group for group in ordered if not self._dropped(group)], num_too_old=num_too_old)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: where the cursor stands, and the groups that were started and not learned from, which will run again."""
        pending = [{"number": one.number, "sample": one.sample.id} for one in self._running]
        return {"cursor": self._cursor.state(), "num_started": self._num_started, "next_number": self._next_number, "pending": pending}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint's state."""
        self._cursor.restore(state["cursor"])
        self._num_started, self._next_number = state["num_started"], state["next_number"]
        samples = {sample.id: sample for sample in self._cursor.samples}
        for one in state["pending"]:
            self._run(one["number"], samples[one["sample"]])

    async def close(self) -> None:
        """Gives up what still runs."""
        for one in self._running:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in self._running), return_exceptions=True)
        self._running.clear()

    def _start(self, step: int) -> None:
        allowed = (step + 1 + self._algorithm.max_staleness) * self._algorithm.samples_per_step
        for sample in self._cursor.take(allowed - self._num_started):
            self._run(self._next_number, sample)
            self._next_number += 1
            self._num_started += 1

    def _run(self, number: int, sample: Sample) -> None:
        running = self._runner.group(sample, f"{number}/{sample.id}", size=self._algorithm.group_size, temperature=self._temperature)
        self._running.append(_Running(number, sample, asyncio.ensure_future(running)))

    def _dropped(self, group: Group) -> bool:
        return self._algorithm.drop_flat_groups and is_flat(group.rewards)

    async def _finished(self, number: int) -> list[_Running]:
        """Some groups that are done, at most `number` of them; on-policy, all of them or none."""
        ready = [one for one in self._running if one.task.done()][:number]
        if ready and (self._algorithm.max_staleness or len(ready) == number):
            return ready
        await asyncio.wait([one.task for one in self._running if not one.task.done()], return_when=asyncio.FIRST_COMPLETED)
        return []

    def _stop_after(self, step: int, num_flat: int) -> None:
        if num_flat >= self._algorithm.max_empty_steps * self._algorithm.samples_per_step:
            raise RunStopped(
                f"step {step}: {num_flat} groups and nothing else had equal rewards: nothing can be learned "
                "(is the data too easy or too hard, or the format never right?)"
            )
