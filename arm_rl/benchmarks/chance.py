"""How much of a score is chance: Wilson's interval, the bootstrap over clusters of rows, and McNemar's exact test."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from arm_rl.benchmarks.base import JudgedRow

Scores = Callable[[Sequence[JudgedRow]], dict[str, float]]

Z = 1.959964  # of a 95 % interval
NUM_DRAWS = 1000


def wilson(share: float, number: int) -> tuple[float, float]:
    """The 95 % interval of a share of `number` independent cases (Wilson 1927)."""
    if number == 0:
        return 0.0, 1.0
    scale = 1 + Z**2 / number
    center = (share + Z**2 / (2 * number)) / scale
    half = Z * math.sqrt(share * (1 - share) / number + Z**2 / (4 * number**2)) / scale
    return max(0.0, center - half), min(1.0, center + half)


def intervals(
    rows: Sequence[JudgedRow], scores: Scores, *, num_draws: int = NUM_DRAWS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each score, by drawing clusters of rows again (percentile bootstrap)."""
    return _percentile_intervals(scores(drawn) for (drawn,) in _draw_clusters([rows], num_draws, seed))


def difference_intervals(
    before: Sequence[JudgedRow],
    after: Sequence[JudgedRow],
    scores: Scores,
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each score's difference between two runs on the same rows, drawn together (paired bootstrap)."""
    return _percentile_intervals(
        subtract_scores(scores(old), scores(new)) for old, new in _draw_clusters([before, after], num_draws, seed)
    )


def subtract_scores(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return the differences of the scores that both have."""
    return {name: after[name] - value for name, value in before.items() if name in after}


def mcnemar(lost: int, won: int) -> float:
    """Two-sided exact p-value: how probable so uneven numbers of changed cases are, were either change equally probable."""
    number = lost + won
    tail = sum(math.comb(number, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / 2**number)


def _draw_clusters(runs: Sequence[Sequence[JudgedRow]], num_draws: int, seed: int) -> Iterator[list[list[JudgedRow]]]:
    """Yield rows of each run for the same random clusters; a cluster drawn twice counts as two."""
    grouped = []
    for rows in runs:
        by_cluster: dict[str, list[JudgedRow]] = defaultdict(list)
        for row in rows:
            by_cluster[row.cluster].append(row)
        grouped.append(by_cluster)
    clusters = sorted(grouped[0])
    if not clusters:
        return
    generator = np.random.default_rng(seed)
    for _ in range(num_draws):
        times: Counter[str] = Counter()
        drawn: list[list[JudgedRow]] = [[] for _ in runs]
        for index in generator.integers(len(clusters), size=len(clusters)):
            cluster = clusters[index]
            times[cluster] += 1
            for rows, by_cluster in zip(drawn, grouped, strict=True):
                members = by_cluster[cluster]
                again = times[cluster] > 1 and len(members) > 1
                rows += [replace(row, cluster=f"{cluster}#{times[cluster]}") for row in members] if again else members
        yield drawn


def _percentile_intervals(drawn: Iterator[dict[str, float]]) -> dict[str, tuple[float, float]]:
    values: dict[str, list[float]] = defaultdict(list)
    for scores in drawn:
        for name, value in scores.items():
            values[name].append(value)
    found = {}
    for name, members in values.items():
        low, high = np.percentile(members, [2.5, 97.5])
        found[name] = (float(low), float(high))
    return found
