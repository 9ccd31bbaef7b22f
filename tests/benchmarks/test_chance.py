"""Intervals and tests against SciPy, and against what they are for."""

import numpy as np
import pytest
import scipy.stats

from arm_rl.benchmarks.base import JudgedRow, mean
from arm_rl.benchmarks.chance import difference_intervals, intervals, mcnemar, wilson


@pytest.mark.parametrize(("right", "number"), [(0, 5), (5, 5), (3, 10), (640, 1000)])
def test_wilson(right, number):
    expected = scipy.stats.binomtest(right, number).proportion_ci(0.95, method="wilson")
    assert wilson(right / number, number) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_of_nothing_everything_is_possible():
    assert wilson(0.0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 5), (4, 4), (10, 3), (300, 400)])
def test_mcnemar(lost, won):
    expected = scipy.stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(expected)


def rows(values, num_rows_of_cluster=1):
    return [
        JudgedRow(key=str(n), cluster=str(n // num_rows_of_cluster), categories={}, judged=(), value=float(value))
        for n, value in enumerate(values)
    ]


def overall(rows):
    return {"overall": mean([row.value for row in rows])} if rows else {}


def test_the_bootstrap_is_near_to_the_normal_interval():
    values = np.random.default_rng(0).integers(2, size=400)
    low, high = intervals(rows(values), overall)["overall"]
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.012)


def test_rows_of_a_cluster_are_no_cases_of_their_own():
    values = np.repeat(np.random.default_rng(0).integers(2, size=100), 4)
    alone, together = (intervals(rows(values, size), overall)["overall"] for size in (1, 4))
    assert together[1] - together[0] == pytest.approx(2 * (alone[1] - alone[0]), rel=0.2)


def test_a_cluster_that_is_drawn_twice_counts_as_two():
    def num_clusters(rows):
        return {"clusters": float(len({row.cluster for row in rows}))}

    assert intervals(rows([1] * 8, 2), num_clusters, num_draws=50)["clusters"] == (4.0, 4.0)


def test_a_paired_difference_is_narrower_than_that_of_strangers():
    before = np.random.default_rng(0).integers(2, size=300)
    after = before.copy()
    after[:15] = 1
    low, high = difference_intervals(rows(before), rows(after), overall)["overall"]
    assert 0 <= low < after.mean() - before.mean() < high < 0.08


def test_no_rows_no_interval():
    assert intervals([], overall) == {}
