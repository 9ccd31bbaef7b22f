"""The frame of the benchmarks: what is compared, at which size, and how the values of both sides become a result.

measure(settings, workspace) -> values of both sides, repeat by repeat -> ratios -> goal met or missed
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from arm_rl.experiments.bench.result import Result

SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """Folders of one benchmark."""

    kept: Path  # shared with later benchmarks: judges, TRL's environment
    temporary: Path  # removed when the benchmark ends: models, data, run folders


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Values of both sides, one a repeat; the two values of a repeat are measured one after the other."""

    ours: Sequence[float]
    other: Sequence[float]
    notes: Sequence[str]  # sizes, and what is unfair
    details: Mapping[str, Any]  # numbers of the profile


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedBenchmark(Generic[SettingsT]):
    """A comparison of two sides, with the ratio that it should reach."""

    key: str
    what: str  # one line
    unit: str
    goal: float  # of the ratio: at least, or at most where less is better
    less_is_better: bool = False
    settings: SettingsT
    quick: SettingsT  # small ones, to try the benchmark
    measure: Callable[[SettingsT, Workspace], Measurement]  # needs a Ray cluster

    def run(self, folder: Path, *, quick: bool = False) -> Result:
        """Measure both sides and return their ratio.

        Args:
            folder: kept after the run; judges and TRL's environment are made there once.
            quick: measures with small settings.
        """
        with tempfile.TemporaryDirectory() as temporary:
            workspace = Workspace(kept=folder, temporary=Path(temporary))
            measured = self.measure(self.quick if quick else self.settings, workspace)
        return Result.of(
            key=self.key,
            what=self.what,
            unit=self.unit,
            goal=self.goal,
            less_is_better=self.less_is_better,
            ours=measured.ours,
            other=measured.other,
            notes=list(measured.notes),
            details=dict(measured.details),
        )


def medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each name over all rows; the first row has the names, and a row without a name counts as 0."""
    return {name: statistics.median(row.get(name, 0.0) for row in rows) for name in (rows[0] if rows else ())}
