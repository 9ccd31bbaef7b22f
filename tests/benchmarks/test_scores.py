"""Published scoring, reproduced on fixed predictions: the expected numbers are computed by hand."""

import math

import pytest

from arm_rl.benchmarks import BENCHMARKS
from arm_rl.benchmarks.base import ItemVerdict
from arm_rl.benchmarks.summary import compare, position_bias, summarize


def judged(
    row,
    verdict,
    label="1",
    *,
    id=None,
    kind="choice",
    cluster=None,
    order=(0, 1),
    row_items=1,
    num_calls=0,
    **categories,
):
    return ItemVerdict(
        id=id or row,
        row=row,
        cluster=cluster or row,
        kind=kind,
        categories=categories,
        order=order,
        label=label,
        verdict=verdict,
        row_items=row_items,
        num_calls=num_calls,
    )


def scores(name, verdicts):
    benchmark = BENCHMARKS[name]
    return benchmark.scores(benchmark.rows(verdicts))


def vl(group, right, wrong, unreadable=0):
    verdicts = ["1"] * right + ["2"] * wrong + [None] * unreadable
    return [judged(f"{group}-{n}", verdict, group=group) for n, verdict in enumerate(verdicts)]


def test_vl_rewardbench():
    """general 3 of 4, hallucination 1 of 2 (one unreadable is left out), reasoning 3 of 3: overall 7 of 9, macro (0.75 + 0.5 + 1) / 3."""
    verdicts = [*vl("general", 3, 1), *vl("hallucination", 1, 1, unreadable=1), *vl("reasoning", 3, 0)]
    expected = {"general": 0.75, "hallucination": 0.5, "reasoning": 1.0, "overall": 7 / 9, "macro": 0.75}
    assert scores("vl_rewardbench", verdicts) == pytest.approx(expected)
    assert summarize(BENCHMARKS["vl_rewardbench"], verdicts)["accuracy"]["value"] == pytest.approx(0.7), (
        "7 of 10: unreadable is wrong"
    )


def test_vl_rewardbench_with_several_verdicts_a_row_the_majority_counts():
    """Right twice: right. Split: one half. One of two unreadable: left out. Wrong twice: wrong. One of three wrong: right."""
    pairs = {"a": ("1", "1"), "b": ("1", "2"), "c": ("1", None), "d": ("2", "2"), "e": ("1", "2", "1")}
    verdicts = [
        judged(row, verdict, id=f"{row}{n}", row_items=len(pair), group="general")
        for row, pair in pairs.items()
        for n, verdict in enumerate(pair)
    ]
    assert scores("vl_rewardbench", verdicts) == {"general": 0.625, "overall": 0.625, "macro": 0.625}


def rated(prompt, kind, right, wrong):
    """A row of Ties with these ratings."""
    ratings = [(rating, "true") for rating in right] + [(rating, "false") for rating in wrong]
    return [
        judged(
            f"Ties/{kind}:{prompt}",
            None if rating is None else str(rating),
            label,
            id=f"{kind}:{prompt}/{n}",
            kind="rating",
            cluster=f"Ties:{prompt}",
            order=(),
            row_items=len(ratings),
            subset="Ties",
            ties=kind,
        )
        for n, (rating, label) in enumerate(ratings)
    ]


TIES = [
    # gap(ref) = 9 - 3 = 6, gap(tied) = 8 - 4 = 4, spread 9 - 8 = 1: preferred, and hard (min 4 > 1); margin tanh(4 / 1 - 1)
    *rated(0, "ref", [9], [3, 2]),
    *rated(0, "tied", [9, 8], [4, 1]),
    # gap(ref) = 5 - 4 = 1, gap(tied) = 6 - 3 = 3, spread 8 - 6 = 2: preferred (3 > 2), not hard (1 < 2); margin tanh(1 / 2 - 1)
    *rated(1, "ref", [5], [4, 4]),
    *rated(1, "tied", [8, 6], [3, 3]),
    # gap(ref) = 2 - 7 = -5, not accurate; gap(tied) = 7 - 7 = 0, not accurate; spread 0: neither; margin of -5 / 0: -1
    *rated(2, "ref", [2], [7]),
    *rated(2, "tied", [7, 7], [7]),
    # an unreadable rating is -1: gap(ref) = -1 - 5 = -6; gap(tied) = 10 - -1 = 11, spread 0: preferred, not hard; margin -1
    *rated(3, "ref", [None], [5]),
    *rated(3, "tied", [10, 10], [None]),
]


def test_reward_bench_2_ties():
    """accuracy: tied 3 of 4, ref 2 of 4; preferred 3 of 4; hard 1 of 4."""
    margin = (math.tanh(3) + math.tanh(-0.5) - 1 - 1) / 4
    expected = 0.3 * 0.75 + 0.3 * 0.5 + 0.2 * 0.75 + 0.2 * 0.25 + 0.01 * margin
    assert expected == pytest.approx(0.5713323, abs=1e-7)
    assert scores("reward_bench_2", TIES) == pytest.approx({"Ties": expected, "score": expected})


def test_reward_bench_2_ties_where_all_ratings_are_equal():
    """0 / 0 in the margin counts 0; nothing is accurate or preferred."""
    assert scores("reward_bench_2", [*rated(0, "ref", [5], [5]), *rated(0, "tied", [5, 5], [5])])["Ties"] == 0.0


def test_reward_bench_2():
    """Factuality: right, wrong, unreadable (1/4): 1.25 / 3. Math: 1. The score is the mean of the three subsets."""
    verdicts = [
        judged("Factuality/0", "1", subset="Factuality"),
        judged("Factuality/1", "4", subset="Factuality"),
        judged("Factuality/2", None, subset="Factuality"),
        judged("Math/3", "2", "2", subset="Math"),
    ]
    ties = 0.3 * 0.75 + 0.3 * 0.5 + 0.2 * 0.75 + 0.2 * 0.25 + 0.01 * (math.tanh(3) + math.tanh(-0.5) - 2) / 4
    found = scores("reward_bench_2", [*verdicts, *TIES])
    assert found == pytest.approx(
        {"Factuality": 1.25 / 3, "Math": 1.0, "Ties": ties, "score": (1.25 / 3 + 1.0 + ties) / 3}
    )


def test_a_row_of_ties_that_lacks_a_rating_is_left_out():
    *most, last = TIES
    assert scores("reward_bench_2", most)["Ties"] != scores("reward_bench_2", TIES)["Ties"]
    assert summarize(BENCHMARKS["reward_bench_2"], most, len(TIES))["missing"] == 1
    assert last.row not in {row.key for row in BENCHMARKS["reward_bench_2"].rows(most)}


def test_hrbench_is_the_mean_over_its_cycles():
    """cycle_0: single 1 of 1, cross 1 of 2; cycle_1: single 0 of 1: single (1 + 0) / 2, cross 1/2, overall (2/3 + 0) / 2."""
    verdicts = [
        judged("0", "A", "A", kind="letter", category="single", cycle="cycle_0"),
        judged("1", "A", "A", kind="letter", category="cross", cycle="cycle_0"),
        judged("2", "B", "A", kind="letter", category="cross", cycle="cycle_0"),
        judged("3", None, "A", kind="letter", category="single", cycle="cycle_1"),
    ]
    assert scores("hrbench_8k", verdicts) == pytest.approx({"single": 0.5, "cross": 0.5, "overall": 1 / 3})


def test_vstar():
    verdicts = [
        judged("0", "A", "A", kind="letter", category="direct_attributes"),
        judged("1", "B", "B", kind="letter", category="direct_attributes"),
        judged("2", "B", "A", kind="letter", category="relative_position"),
    ]
    assert scores("vstar", verdicts) == pytest.approx(
        {"direct_attributes": 1.0, "relative_position": 0.0, "overall": 2 / 3}
    )


def test_armbench_vl():
    verdicts = [
        judged("0", "1", track="fine_grained_perception", way="2-way"),
        judged("1", "2", track="fine_grained_perception", way="4-way"),
        judged("2", "1", track="fine_grained_perception", way="4-way"),
        judged("3", None, "true", kind="truth", track="multimodal_long_document", way="pointwise"),
    ]
    expected = {
        "fine_grained_perception": 2 / 3,
        "multimodal_long_document": 0.0,
        "2-way": 1.0,
        "4-way": 0.5,
        "pointwise": 0.0,
    }
    assert scores("armbench_vl", verdicts) == pytest.approx({**expected, "overall": 0.5, "average": 1 / 3})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_nothing_judged_is_no_score(name):
    assert scores(name, []) == {}
    assert summarize(BENCHMARKS[name], [], 3)["missing"] == 3


def pair(row, first, second):
    """Verdicts in both orders; the file's answer 0 is the better one."""
    return [
        judged(row, first, "1", id=row, order=(0, 1), row_items=2, group="general"),
        judged(row, second, "2", id=f"{row}/swapped", order=(1, 0), row_items=2, group="general"),
    ]


def test_position_bias():
    """Four pairs: right in both, always the first, always the second, first and unreadable: 4 of 7 verdicts for the first."""
    verdicts = [*pair("a", "1", "2"), *pair("b", "1", "1"), *pair("c", "2", "2"), *pair("d", "1", None)]
    assert position_bias(BENCHMARKS["vl_rewardbench"].rows(verdicts)) == pytest.approx(
        {"first": 4 / 7, "bias": 4 / 7 - 0.5, "same": 0.25, "both_right": 0.25, "num_pairs": 4}
    )
    assert position_bias(BENCHMARKS["vl_rewardbench"].rows(vl("general", 3, 1))) is None


def test_a_summary_has_calls_and_categories():
    verdicts = [
        judged("0", "1", track="a", way="2-way", num_calls=3),
        judged("1", "2", track="a", way="2-way", num_calls=0),
        judged("2", "1", track="b", way="2-way", num_calls=0),
    ]
    found = summarize(BENCHMARKS["armbench_vl"], verdicts)
    assert (found["calls"], found["call_rate"], found["readable"]) == pytest.approx((1.0, 1 / 3, 1.0))
    track = found["categories"]["track"]
    assert (track["a"]["value"], track["a"]["num_rows"], track["a"]["calls"]) == (0.5, 2, 1.5)
    assert (track["b"]["value"], track["b"]["calls"]) == (1.0, 0.0)
    low, value, high = (found["scores"]["average"][name] for name in ("low", "value", "high"))
    assert low <= value == 0.75 <= high


def test_two_runs_compared():
    """Of 12 rows, 1 was lost and 9 were won: p = 2 * (1 + 10) / 2**10."""
    before = vl("general", 3, 9)
    after = [judged(one.row, verdict, group="general") for one, verdict in zip(before, ["2", *["1"] * 11], strict=True)]
    found = compare(BENCHMARKS["vl_rewardbench"], before, [*after, judged("new", "1", group="general")])
    assert (found["num_rows"], found["left_out"], found["lost"], found["won"]) == (12, 1, 1, 9)
    assert found["p"] == pytest.approx(22 / 1024)
    overall = found["scores"]["overall"]
    assert (overall["before"], overall["after"], overall["difference"]) == pytest.approx((3 / 12, 11 / 12, 8 / 12))
    assert 0 < overall["low"] < overall["difference"] < overall["high"] <= 1


def test_runs_with_values_between_have_no_mcnemar():
    before = [judged("Math/0", None, subset="Math")]
    found = compare(BENCHMARKS["reward_bench_2"], before, [judged("Math/0", "1", subset="Math")])
    assert (found["p"], found["won"]) == (None, 1)
    assert found["scores"]["score"]["difference"] == 0.75
