"""What a benchmark says: two sides, measured in turn in one run, and their ratio."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Result:
    """Of one benchmark. The ratio is ours over the other, repeat by repeat."""

    key: str
    what: str  # one line
    goal: float  # of the ratio: at least, or at most where less is better
    unit: str
    ours: list[float]  # one a repeat
    other: list[float]  # one a repeat
    ratio: float  # median over the repeats
    ratio_low: float  # smallest and ...
    ratio_high: float  # ... largest
    less_is_better: bool = False
    notes: list[str] = field(default_factory=list)  # what is unfair, the machine
    details: dict[str, Any] = field(default_factory=dict)  # numbers of the profile

    @classmethod
    def of(cls, *, ours: Sequence[float], other: Sequence[float], **rest: Any) -> "Result":
        """With the ratios of the repeats."""
        ratios = [one / two for one, two in zip(ours, other, strict=True)]
        return cls(
            ours=list(ours),
            other=list(other),
            ratio=statistics.median(ratios),
            ratio_low=min(ratios),
            ratio_high=max(ratios),
            **rest,
        )

    @property
    def met(self) -> bool:
        """Whether the median reaches the goal."""
        return self.ratio <= self.goal if self.less_is_better else self.ratio >= self.goal
