"""The order in which a seed deals out samples: each epoch is a shuffle of everything, or mixed by weights over the tracks.

The shuffle is global, not one of a buffer: rows are read at random places of the files, so an order needs no state but a number, and a run
goes on at any sample. An epoch's order takes 8 bytes a sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from arm_rl.core.seeding import derive_seed
from arm_rl.data.parquet_rows import DataError


@dataclass(slots=True)
class Order:
    """Which samples an epoch deals out, by their numbers: always as many as there are.

    Without weights each of them once. With weights, each track has its share of the epoch (to the sample) and goes through its own samples
    in a shuffle of its own, over the epochs' borders: one that is asked for more than it has repeats sooner, one that is asked for less
    takes several epochs.
    """

    seed: int
    num_samples: int
    purpose: str = "epoch"  # part of the seeds
    # of each track: its samples, and its share of an epoch
    shares: Mapping[str, tuple[np.ndarray, float]] = field(default_factory=dict)
    _last: tuple[int, np.ndarray] | None = None

    @classmethod
    def from_weights(
        cls,
        seed: int,
        names: Sequence[str],
        tracks: Sequence[int],
        weights: Mapping[str, float],
        *,
        purpose: str = "epoch",
    ) -> "Order":
        """Return the order that mixes tracks by `data.weights`, or a plain shuffle without weights.

        Args:
            names: of all tracks.
            tracks: of each sample, as a place in `names`.

        Raises:
            DataError: the weights name other tracks than the data has.
        """
        if not weights:
            return cls(seed, len(tracks), purpose)
        if {*weights} != {*names}:
            raise DataError(
                f"data.weights: a weight for each track of the data ({', '.join(sorted(names))}), not for {sorted(weights)}"
            )
        codes, total = np.asarray(tracks), sum(weights.values())
        shares = {
            name: (np.flatnonzero(codes == code), weights[name] / total)
            for code, name in enumerate(names)
            if weights[name]
        }
        return cls(seed, len(tracks), purpose, shares)

    def sample_numbers(self, epoch: int) -> np.ndarray:
        """Return the numbers of an epoch's samples in order: (num_samples,), int64."""
        if self._last is None or self._last[0] != epoch:
            self._last = epoch, self._mix_tracks(epoch) if self.shares else self._shuffle(epoch, self.num_samples)
        return self._last[1]

    def _shuffle(self, epoch: int, number: int, *track: str) -> np.ndarray:
        return np.random.default_rng(derive_seed(self.seed, self.purpose, epoch, *track)).permutation(number)

    def _mix_tracks(self, epoch: int) -> np.ndarray:
        names = sorted(self.shares)
        ends = np.rint(np.cumsum([self.shares[name][1] for name in names]) * self.num_samples).astype(np.int64)
        quotas = dict(zip(names, np.diff(ends, prepend=0), strict=True))
        dealt = np.concatenate([self._track_samples(name, epoch * quotas[name], quotas[name]) for name in names])
        return dealt[self._shuffle(epoch, self.num_samples)]

    def _track_samples(self, name: str, start: int, number: int) -> np.ndarray:
        """Return `number` samples of a track, from the `start`th that it deals out over all epochs."""
        samples, _ = self.shares[name]
        rounds = range(start // len(samples), -(-(start + number) // len(samples)))
        dealt = np.concatenate(
            [np.empty(0, np.int64), *(samples[self._shuffle(one, len(samples), name)] for one in rounds)]
        )
        skipped = start - rounds.start * len(samples)
        return dealt[skipped : skipped + number]
