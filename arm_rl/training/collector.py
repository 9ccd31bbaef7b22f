"""Keeps groups running as far ahead of the learners as `algorithm.max_staleness` allows, and hands each step its groups.

    cursor -> groups that run -> finished groups -> select -> the step

One rule serves synchronous and asynchronous runs: before step s ends, (s + 1 + max_staleness) * samples_per_step groups may have
been started. With 0, a step's groups start when the step does, and the step waits for all of them; with more, the learners take the
first ones that are finished, while others run on, through updates of the weights too. A dropped group gives its place to a new one.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.types import Sample
from arm_rl.data.parquet_rows import DataError
from arm_rl.data.samples import Cursor
from arm_rl.training.group import Group, RunStopped, group_name
from arm_rl.training.ledger import Ledger
from arm_rl.training.select import Selection, select


class GroupSource(Protocol):
    """Runs one group of sessions and scores it."""

    async def run_group(self, sample: Sample, group_id: str, *, size: int, temperature: float) -> Group:
        """Return the scored group."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StepGroups:
    """The groups of a step."""

    selections: list[Selection]  # all that were finished for the step and are not too old, by number
    num_too_old: int  # groups that were dropped for their age

    @property
    def trained(self) -> list[Selection]:
        """Groups of which a trajectory is trained on."""
        return [one for one in self.selections if one.trains]

    def metrics(self, version: int) -> dict[str, float]:
        """Return shares and staleness as metrics; `version` is that of the weights that the step starts from."""
        tokens: Counter[int] = Counter()  # by their age
        for one in self.trained:
            for turn in one.group.turns:
                if turn.token_ids:
                    tokens[max(version - turn.policy_version, 0)] += len(turn.token_ids)  # below 0 after a kill
        num_tokens = max(tokens.total(), 1)
        return {
            "rollout/groups_kept": len(self.trained) / len(self.selections),
            "rollout/groups_too_old": float(self.num_too_old),
            "rollout/staleness": sum(age * number for age, number in tokens.items()) / num_tokens,
            "rollout/staleness_max": float(max(tokens, default=0)),
            "rollout/stale_token_share": sum(number for age, number in tokens.items() if age > 0) / num_tokens,
        }


@dataclass(slots=True)
class _RunningGroup:
    """A group that runs, or is finished and waits for a step."""

    number: int  # of all groups that were drawn: decides the order in a batch, and the seeds
    sample: Sample
    group: "asyncio.Future[Group]"


class Collector:
    """Draws samples, runs their groups and selects what a step trains on."""

    def __init__(self, config: TrainConfig, source: GroupSource, cursor: Cursor) -> None:
        self._algorithm, self._temperature = config.algorithm, config.rollout.temperature
        self._source, self._cursor = source, cursor
        self._running: list[_RunningGroup] = []  # by number
        self._num_started = 0  # groups that count against the rule: those that were dropped do not
        self._next_number = 0
        self.ledger = Ledger(config.algorithm.group_size)

    async def collect(self, step: int) -> StepGroups:
        """Return the groups of a step that starts from weights of version `step`; `settle` books them once they are trained on.

        Where the call is cancelled, a checkpoint's state holds all that was drawn for the step.

        Raises:
            RunStopped: If `max_empty_steps` times as many groups as a step needs had nothing to learn from.
        """
        size = self._algorithm.samples_per_step
        taken: dict[int, tuple[_RunningGroup, Selection]] = {}  # for the step, by number
        num_filled = num_too_old = 0  # places of the step that are taken, and groups that were dropped for their age
        try:
            while num_filled < size:
                self._start(step)
                for running in await self._finished(size - num_filled):
                    self._running.remove(running)
                    selection = select(running.number, running.group.result(), step, self._algorithm)
                    if selection.is_too_old:
                        num_too_old += 1
                        self._num_started -= 1
                        self.ledger.settle(selection.number, selection.fates)
                        continue
                    taken[running.number] = running, selection
                    if self._algorithm.refill_flat and not selection.trains:
                        self._num_started -= 1
                    else:
                        num_filled += 1
                if not any(selection.trains for _, selection in taken.values()):
                    self._stop_if_empty(step, len(taken))
                    if num_filled == size:  # the step draws other groups
                        self._num_started -= num_filled
                        num_filled = 0
        except asyncio.CancelledError:  # as if the groups that were taken still waited
            self._running = sorted([*self._running, *(one for one, _ in taken.values())], key=lambda one: one.number)
            self._num_started += len(taken) - num_filled
            raise
        except RunStopped:  # nothing is left to learn from the groups that were taken
            for _, selection in taken.values():
                self.ledger.settle(selection.number, selection.fates)
            self._num_started -= num_filled
            raise
        return StepGroups(selections=[taken[number][1] for number in sorted(taken)], num_too_old=num_too_old)

    def put_back(self, groups: StepGroups) -> None:
        """Return the groups of a step that was not finished: a resumed run runs these groups again."""
        for one in groups.selections:
            never = asyncio.get_running_loop().create_future()
            never.cancel()
            self._running.append(_RunningGroup(one.number, one.group.sample, never))
        self._running.sort(key=lambda one: one.number)
        self._num_started += len(groups.selections) - self._algorithm.samples_per_step

    def settle(self, groups: StepGroups) -> None:
        """Book what became of the trajectories of a step."""
        for one in groups.selections:
            self.ledger.settle(one.number, one.fates)

    def finished(self) -> dict[int, Group]:
        """Return the groups that wait for a step, by number."""
        return {one.number: one.group.result() for one in self._running if _is_finished(one.group)}

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the cursor, the ledger, and the groups that were drawn and not trained on.

        The groups of `finished`, which the checkpoint keeps as well, go into the next steps; the others will run again.

        Raises:
            LedgerError: If a group is lost.
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
        """Return the samples of a checkpoint's pending groups, by the groups' numbers; every sample that is dealt starts a group.

        Raises:
            DataError: If the data has changed since the checkpoint.
        """
        self._cursor.require_same_data(state["cursor"])
        samples = {one["number"]: self._cursor.sample_at(one["number"]) for one in state["pending"]}
        for one in state["pending"]:
            now = samples[one["number"]].id
            if now != one["sample"]:
                raise DataError(
                    f"the checkpoint has drawn the sample {one['sample']!r}, where there is {now!r} now: the data has changed"
                )
        return samples

    def restore(self, state: Mapping[str, Any], finished: Mapping[int, Group]) -> None:
        """Resume from a checkpoint's state, with the groups that were finished by then."""
        self._cursor.restore(state["cursor"])
        self._num_started, self._next_number = state["num_started"], state["next_number"]
        self.ledger = Ledger.of(state["ledger"])
        for number, sample in self.pending(state).items():
            self._run(number, sample, finished.get(number))

    async def idle(self) -> None:
        """Wait for the groups that run."""
        await asyncio.gather(*(one.group for one in self._running))

    async def close(self) -> None:
        """Cancel the groups that still run."""
        for one in self._running:
            one.group.cancel()
        await asyncio.gather(*(one.group for one in self._running), return_exceptions=True)
        self._running.clear()

    def _start(self, step: int) -> None:
        """Draw and start as many groups as may run in this step."""
        allowed = (step + 1 + self._algorithm.max_staleness) * self._algorithm.samples_per_step
        for sample in self._cursor.take(allowed - self._num_started):
            self.ledger.draw(self._next_number, epoch=self._next_number // len(self._cursor.samples))
            self._run(self._next_number, sample)
            self._next_number += 1
            self._num_started += 1

    def _run(self, number: int, sample: Sample, finished: Group | None = None) -> None:
        if finished is None:
            size, temperature = self._algorithm.group_size, self._temperature
            running = self._source.run_group(sample, group_name(number, sample), size=size, temperature=temperature)
            group: asyncio.Future[Group] = asyncio.ensure_future(running)
        else:
            group = asyncio.get_running_loop().create_future()
            group.set_result(finished)
        self._running.append(_RunningGroup(number, sample, group))

    async def _finished(self, number: int) -> list[_RunningGroup]:
        """Wait for groups that are done; return at most `number` of them, and on-policy all of them or none."""
        ready = [one for one in self._running if one.group.done()][:number]
        if ready and (self._algorithm.max_staleness or len(ready) == number):
            return ready
        waiting = [one.group for one in self._running if not one.group.done()]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return []

    def _stop_if_empty(self, step: int, num_groups: int) -> None:
        if num_groups >= self._algorithm.max_empty_steps * self._algorithm.samples_per_step:
            raise RunStopped(
                f"step {step}: {num_groups} groups and nothing else had equal rewards: nothing can be learned "
                "(is the data too easy or too hard, or the format never right?)"
            )


def _is_finished(group: "asyncio.Future[Group]") -> bool:
    """Whether the group is there; one that failed fails the next step."""
    return group.done() and not group.cancelled() and group.exception() is None
