"""Keeps groups running as far ahead of the learners as `algorithm.max_staleness` allows, and gives each step its groups.

    cursor -> groups that run -> finished ones -> the step: kept, flat, too old

One rule serves synchronous and asynchronous runs: before step s ends, (s + 1 + max_staleness) * samples_per_step groups may have been
started. With 0, a step's groups start when the step does, and it waits for all of them; with more, the learners take the first ones that
are finished, while others run on, through updates of the weights too. A group that is dropped gives its place to a new one.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from arm_rl.core.advantage import is_zero_variance
from arm_rl.core.config import TrainConfig
from arm_rl.core.types import Sample
from arm_rl.data.parquet_rows import DataError
from arm_rl.data.samples import Cursor
from arm_rl.training.groups import Group, RunStopped, group_name
from arm_rl.training.ledger import Ledger, fates


class Groups(Protocol):
    """Runs one group of sessions and scores it."""

    async def group(self, sample: Sample, group_id: str, *, size: int, temperature: float) -> Group:
        """The scored group."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What a step gets."""

    groups: list[Group]  # all that were finished for it and not too old
    kept: dict[int, Group]  # those of them that have something to teach, by their numbers
    num_too_old: int  # groups that were dropped for their age

    def metrics(self, version: int) -> dict[str, float]:
        """In numbers; `version` is that of the weights that the step starts from."""
        tokens: Counter[int] = Counter()  # by their age
        for group in self.kept.values():
            for turn in group.turns:
                if turn.token_ids:
                    tokens[max(version - turn.policy_version, 0)] += len(turn.token_ids)  # below 0 after a kill
        num_tokens = max(tokens.total(), 1)
        return {
            "rollout/groups_kept": len(self.kept) / len(self.groups),
            "rollout/groups_too_old": float(self.num_too_old),
            "rollout/staleness": sum(age * number for age, number in tokens.items()) / num_tokens,
            "rollout/staleness_max": float(max(tokens, default=0)),
            "rollout/stale_token_share": sum(number for age, number in tokens.items() if age > 0) / num_tokens,
        }


@dataclass(slots=True)
class _RunningGroup:
    """A group on its way."""

    number: int  # of all that were started: decides the order in a batch, and the seeds
    sample: Sample
    group: "asyncio.Future[Group]"


class Collector:
    """Draws samples and runs them. `max_staleness` is in steps."""

    def __init__(self, config: TrainConfig, runner: Groups, cursor: Cursor) -> None:
        self._algorithm, self._temperature = config.algorithm, config.rollout.temperature
        self._runner, self._cursor = runner, cursor
        self._running: list[_RunningGroup] = []  # finished ones too, until a step takes them; by number
        self._num_started = 0  # groups that count against the rule: those that were dropped do not
        self._next_number = 0
        self.ledger = Ledger(config.algorithm.group_size)

    async def collect(self, step: int) -> Collected:
        """The groups of a step. Its weights have the version `step`. Who learns from them settles them in the ledger.

        Where it is cancelled, a checkpoint's state holds all that was drawn for the step.

        Raises:
            RunStopped: whatever was drawn, all of it was flat.
        """
        algorithm = self._algorithm
        taken: list[_RunningGroup] = []  # for the step
        num_filled = num_too_old = 0  # places of the step that are taken, and groups that were dropped for their age
        try:
            while num_filled < algorithm.samples_per_step:
                self._start(step)
                for one in await self._finished(algorithm.samples_per_step - num_filled):
                    self._running.remove(one)
                    group = one.group.result()
                    if group.age(step) > algorithm.max_staleness:
                        num_too_old += 1
                        self._num_started -= 1
                        self.ledger.settle(one.number, fates(group.scored, "too_old", algorithm.mask_overlong))
                        continue
                    taken.append(one)
                    if self._dropped(group) and algorithm.refill_flat:
                        self._num_started -= 1
                    else:
                        num_filled += 1
                if all(self._dropped(one.group.result()) for one in taken):  # nothing to learn from so far
                    self._stop_after(step, len(taken))
                    if num_filled == algorithm.samples_per_step:  # the step draws anew
                        self._num_started -= num_filled
                        num_filled = 0
        except asyncio.CancelledError:  # as if the groups that were taken still waited
            self._running = sorted([*self._running, *taken], key=lambda one: one.number)
            self._num_started += len(taken) - num_filled
            raise
        by_number = {one.number: one.group.result() for one in sorted(taken, key=lambda one: one.number)}
        for number, group in by_number.items():
            if self._dropped(group):
                self.ledger.settle(number, fates(group.scored, "flat", algorithm.mask_overlong))
        kept = {number: group for number, group in by_number.items() if not self._dropped(group)}
        return Collected(groups=list(by_number.values()), kept=kept, num_too_old=num_too_old)

    def settle(self, learned: Collected) -> None:
        """Books what a step has learned from."""
        for number, group in learned.kept.items():
            self.ledger.settle(number, fates(group.scored, "trained", self._algorithm.mask_overlong))

    def finished(self) -> dict[int, Group]:
        """Groups that wait for a step, by their numbers."""
        return {one.number: one.group.result() for one in self._running if _is_whole(one.group)}

    def state(self) -> dict[str, Any]:
        """For a checkpoint: where the cursor stands, the ledger, and the groups that were drawn and not learned from.

        Those of `finished`, which the checkpoint keeps beside it, go into the next steps; the others will run again.

        Raises:
            LedgerError: a group got lost.
        """
        self.ledger.check([one.number for one in self._running])
        return {
            "cursor": self._cursor.state(),
            "num_started": self._num_started,
            "next_number": self._next_number,
            "pending": [{"number": one.number, "sample": one.sample.id} for one in self._running],
            "ledger": self.ledger.state(),
        }

    def pending(self, state: Mapping[str, Any]) -> dict[int, Sample]:
        """The samples of a checkpoint's groups, by the groups' numbers: the cursor's, as every sample that it deals out starts a group.

        Raises:
            DataError: the data is not what it was.
        """
        samples = {one["number"]: self._cursor.sample_at(one["number"]) for one in state["pending"]}
        for one in state["pending"]:
            found = samples[one["number"]].id
            if found != one["sample"]:
                raise DataError(
                    f"the checkpoint has drawn the sample {one['sample']!r}, where there is {found!r} now: the data has changed"
                )
        return samples

    def restore(self, state: Mapping[str, Any], finished: Mapping[int, Group]) -> None:
        """Goes on from a checkpoint's state, with the groups that were finished by then."""
        self._cursor.restore(state["cursor"])
        self._num_started, self._next_number = state["num_started"], state["next_number"]
        self.ledger = Ledger.of(state["ledger"])
        for number, sample in self.pending(state).items():
            self._run(number, sample, finished.get(number))

    async def idle(self) -> None:
        """Waits for the groups that run."""
        await asyncio.gather(*(one.group for one in self._running))

    async def close(self) -> None:
        """Gives up what still runs."""
        for one in self._running:
            one.group.cancel()
        await asyncio.gather(*(one.group for one in self._running), return_exceptions=True)
        self._running.clear()

    def _start(self, step: int) -> None:
        allowed = (step + 1 + self._algorithm.max_staleness) * self._algorithm.samples_per_step
        for sample in self._cursor.take(allowed - self._num_started):
            self.ledger.draw(self._next_number, epoch=self._next_number // len(self._cursor.samples))
            self._run(self._next_number, sample)
            self._next_number += 1
            self._num_started += 1

    def _run(self, number: int, sample: Sample, finished: Group | None = None) -> None:
        if finished is None:
            running = self._runner.group(
                sample, group_name(number, sample), size=self._algorithm.group_size, temperature=self._temperature
            )
            group: asyncio.Future[Group] = asyncio.ensure_future(running)
        else:
            group = asyncio.get_running_loop().create_future()
            group.set_result(finished)
        self._running.append(_RunningGroup(number, sample, group))

    def _dropped(self, group: Group) -> bool:
        return self._algorithm.drop_flat_groups and is_zero_variance(group.rewards)

    async def _finished(self, number: int) -> list[_RunningGroup]:
        """Some groups that are done, at most `number` of them; on-policy, all of them or none."""
        ready = [one for one in self._running if one.group.done()][:number]
        if ready and (self._algorithm.max_staleness or len(ready) == number):
            return ready
        await asyncio.wait(
            [one.group for one in self._running if not one.group.done()], return_when=asyncio.FIRST_COMPLETED
        )
        return []

    def _stop_after(self, step: int, num_flat: int) -> None:
        if num_flat >= self._algorithm.max_empty_steps * self._algorithm.samples_per_step:
            raise RunStopped(
                f"step {step}: {num_flat} groups and nothing else had equal rewards: nothing can be learned "
                "(is the data too easy or too hard, or the format never right?)"
            )


def _is_whole(group: "asyncio.Future[Group]") -> bool:
    """Whether it is there; one that failed fails the next step."""
    return group.done() and not group.cancelled() and group.exception() is None
