"""The ledger of a stage: every trajectory (epoch, sample, index in the group) is trained on once, or counted under the reason why not.

    drawn == trained + flat + too_old + overlong + unscored + broken + pending        in each epoch, in trajectories

It knows each group that is pending, and of the others the numbers alone: it stays small however long the run is. It lies in the state of
every checkpoint, so that a run that goes back to one goes back with its ledger.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from arm_rl.core.types import ScoredTrajectory

Fate = Literal["trained", "flat", "too_old", "overlong", "unscored", "broken"]
FATES: tuple[Fate, ...] = get_args(Fate)
MEANINGS = {
    "trained": "trained on, once",
    "flat": "left out: the group's rewards are all equal",
    "too_old": "left out: sampled by weights older than algorithm.max_staleness allows",
    "overlong": "left out: it ran out of tokens (algorithm.mask_overlong)",
    "unscored": "left out: its scorer failed",
    "broken": "left out: its session broke",
    "pending": "drawn and not yet used: it goes into the next steps; after the last one it is surplus",
}


class LedgerError(RuntimeError):
    """A trajectory would be used twice, or has got lost: a fault of the program, not of the data."""


def fates(
    scored: Sequence[ScoredTrajectory], group: Literal["trained", "flat", "too_old"], mask_overlong: bool
) -> list[Fate]:
    """What becomes of each trajectory of a group of which this becomes as a whole."""
    return [_fate(one, group, mask_overlong) for one in scored]


def _fate(one: ScoredTrajectory, group: Literal["trained", "flat", "too_old"], mask_overlong: bool) -> Fate:
    if one.trajectory.end == "aborted":
        return "broken"
    if one.reward is None:
        return "unscored"
    if group == "trained" and mask_overlong and one.trajectory.end == "length":
        return "overlong"
    return group


class Ledger:
    """Counts trajectories by epoch and fate. Groups are known by their numbers, which are those in which they were drawn."""

    def __init__(self, group_size: int) -> None:
        self._group_size = group_size
        self._drawn: Counter[int] = Counter()  # groups, by epoch
        self._pending: dict[int, int] = {}  # number -> epoch
        self._settled: dict[int, Counter[Fate]] = {}  # trajectories, by epoch

    def draw(self, number: int, epoch: int) -> None:
        """A group was drawn.

        Raises:
            LedgerError: it is not the next one.
        """
        if number != self._drawn.total():
            raise LedgerError(f"group {number} was drawn after {self._drawn.total()} others")
        self._drawn[epoch] += 1
        self._pending[number] = epoch

    def settle(self, number: int, fates: Iterable[Fate]) -> None:
        """The fates of a group's trajectories.

        Raises:
            LedgerError: they were settled before, the group was never drawn, or it has another size.
        """
        epoch = self._pending.pop(number, None)
        if epoch is None:
            raise LedgerError(f"group {number} is settled twice, or was never drawn")
        counted = Counter(fates)
        if counted.total() != self._group_size:
            raise LedgerError(f"group {number} has {counted.total()} trajectories, not {self._group_size}")
        self._settled.setdefault(epoch, Counter()).update(counted)

    def check(self, pending: Collection[int]) -> None:
        """Compares with the groups that are really there.

        Raises:
            LedgerError: one got lost, or is there twice, or the counts do not add up.
        """
        if sorted(pending) != sorted(self._pending):
            lost, unknown = sorted(self._pending.keys() - pending), sorted(set(pending) - self._pending.keys())
            raise LedgerError(
                f"groups {lost} got lost, {unknown} should not be there, or one of {sorted(pending)} is there twice"
            )
        for epoch, row in self.table().items():
            if row["drawn"] != sum(row[name] for name in (*FATES, "pending")):
                raise LedgerError(f"epoch {epoch}: {row} does not add up")

    def table(self) -> dict[int, dict[str, int]]:
        """Trajectories by epoch: `drawn`, each fate, and `pending`."""
        pending = Counter(self._pending.values())
        return {
            epoch: {
                "drawn": self._drawn[epoch] * self._group_size,
                **{fate: self._settled.get(epoch, Counter())[fate] for fate in FATES},
                "pending": pending[epoch] * self._group_size,
            }
            for epoch in sorted(self._drawn)
        }

    def state(self) -> dict[str, Any]:
        """For a checkpoint, in JSON's types."""
        return {
            "group_size": self._group_size,
            "drawn": [[epoch, number] for epoch, number in self._drawn.items()],
            "pending": [[number, epoch] for number, epoch in self._pending.items()],
            "settled": [[epoch, dict(counts)] for epoch, counts in self._settled.items()],
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Ledger":
        """As `state` gave it."""
        ledger = cls(state["group_size"])
        ledger._drawn = Counter(dict(state["drawn"]))
        ledger._pending = dict(state["pending"])
        ledger._settled = {epoch: Counter(counts) for epoch, counts in state["settled"]}
        return ledger
