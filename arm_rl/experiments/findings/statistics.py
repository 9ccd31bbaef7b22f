"""How sure a mean over seeds is: intervals of Student's t, of values and of differences paired by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

CONFIDENCE = 0.95
Verdict = Literal["holds", "does not hold", "open"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over seeds, and its 95 % interval: without bounds where there are fewer than two seeds."""

    mean: float
    low: float
    high: float
    num_seeds: int

    def verdict_above(self, bound: float) -> Verdict:
        """Return whether the mean is above `bound`; `open` if the interval has values on both sides."""
        if self.low > bound:
            return "holds"
        return "does not hold" if self.high <= bound else "open"

    def verdict_below(self, bound: float) -> Verdict:
        """Return whether the mean is below `bound`; `open` if the interval has values on both sides."""
        if self.high < bound:
            return "holds"
        return "does not hold" if self.low >= bound else "open"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values, one a seed, with the interval of Student's t.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values")
    number = len(values)
    mean = math.fsum(values) / number
    if number < 2:
        return Estimate(mean=mean, low=-math.inf, high=math.inf, num_seeds=number)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (number - 1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, number - 1)) * deviation / math.sqrt(number)
    return Estimate(mean=mean, low=mean - half, high=mean + half, num_seeds=number)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """First less second, paired over the seeds that both have; None where there are none."""
    seeds = sorted(first.keys() & second.keys())
    return estimate([first[seed] - second[seed] for seed in seeds]) if seeds else None
