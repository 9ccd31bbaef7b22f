"""The ledger of a stage: every trajectory (epoch, sample, index in the group) is trained on once, or counted under the reason why not.

    drawn == trained + flat + too_old + overlong + unscored + broken + pending        in each epoch, in trajectories

The ledger books what `select` decides. It knows each group that is pending, and only the counts of the others: its size does not
depend on the length of the run. Every checkpoint holds it, so that a run that goes back to a checkpoint goes back with its ledger.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from arm_rl.training.select import FATES, Fate

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
    """A trajectory would be used twice, or is lost: a fault of the program, not of the data."""


class Ledger:
    """Counts of trajectories by epoch and fate. A group is known by its number, in the order in which groups were drawn."""

    def __init__(self, group_size: int) -> None:
        self._group_size = group_size
        self._drawn: Counter[int] = Counter()  # groups, by epoch
        self._pending: dict[int, int] = {}  # number -> epoch
        self._settled: dict[int, Counter[Fate]] = {}  # trajectories, by epoch

    def draw(self, number: int, epoch: int) -> None:
        """Book a group that was drawn.

        Raises:
            LedgerError: If the group is not the next one.
        """
        if number != self._drawn.total():
            raise LedgerError(f"group {number} was drawn after {self._drawn.total()} others")
        self._drawn[epoch] += 1
        self._pending[number] = epoch

    def settle(self, number: int, fates: Iterable[Fate]) -> None:
        """Book the fates of a group's trajectories.

        Raises:
            LedgerError: If the group was settled before, was never drawn, or has another size.
        """
        epoch = self._pending.pop(number, None)
        if epoch is None:
            raise LedgerError(f"group {number} is settled twice, or was never drawn")
        counted = Counter(fates)
        if counted.total() != self._group_size:
            raise LedgerError(f"group {number} has {counted.total()} trajectories, not {self._group_size}")
        self._settled.setdefault(epoch, Counter()).update(counted)

    def check(self, pending: Collection[int]) -> None:
        """Compare the ledger with the groups that are really there.

        Raises:
            LedgerError: If a group is lost or there twice, or the counts do not add up.
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
        """Return the numbers of trajectories by epoch: `drawn`, each fate, and `pending`."""
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
        """Return the ledger for a checkpoint, in JSON's types."""
        return {
            "group_size": self._group_size,
            "drawn": [[epoch, number] for epoch, number in self._drawn.items()],
            "pending": [[number, epoch] for number, epoch in self._pending.items()],
            "settled": [[epoch, dict(counts)] for epoch, counts in self._settled.items()],
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Ledger":
        """Restore a ledger from what `state` returned."""
        ledger = cls(state["group_size"])
        ledger._drawn = Counter(dict(state["drawn"]))
        ledger._pending = dict(state["pending"])
        ledger._settled = {epoch: Counter(counts) for epoch, counts in state["settled"]}
        return ledger
