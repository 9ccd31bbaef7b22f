"""A benchmark's verdicts in numbers: published scores with their intervals, categories, calls, position bias; and two runs compared."""

from collections.abc import Mapping, Sequence
from typing import Any

from arm_rl.benchmarks.base import Benchmark, ItemVerdict, JudgedRow, mean, split_by_category
from arm_rl.benchmarks.chance import difference_intervals, intervals, mcnemar, subtract_scores, wilson


def summarize(benchmark: Benchmark, judged: Sequence[ItemVerdict], num_items: int | None = None) -> dict[str, Any]:
    """Of one benchmark, asked in one way; plain values, for JSON.

    Args:
        num_items: that there are; those without a verdict are `missing`.

    Returns:
        `scores` (published ones: value, low, high), `accuracy` (mean of the rows' values: value, low, high), `readable` (share of
        verdicts), `calls` (a sample), `call_rate` (share of samples with one), `ok_calls` (share of the calls that succeeded; None without
        calls), `categories` (name -> value -> the same as accuracy, with num_rows and calls), `position` where pairs were judged in both
        orders.
    """
    rows = benchmark.rows(judged)
    published, ranges = benchmark.scores(rows), intervals(rows, benchmark.scores)
    names = list(dict.fromkeys(name for row in rows for name in row.categories))
    return {
        "num_rows": len(rows),
        "num_items": len(judged),
        "missing": (len(judged) if num_items is None else num_items) - len(judged),
        "main_score": benchmark.main_score,
        "scores": {
            name: {"value": value, "low": ranges[name][0], "high": ranges[name][1]} for name, value in published.items()
        },
        "accuracy": _accuracy_interval(rows),
        "readable": _share([one.verdict is not None for one in judged]),
        **_call_metrics(judged),
        "categories": {
            name: {
                value: {
                    **_accuracy_interval(members),
                    "calls": _call_metrics([one for row in members for one in row.judged])["calls"],
                }
                for value, members in split_by_category(rows, name).items()
            }
            for name in names
        },
        "position": position_bias(rows),
    }


def position_bias(rows: Sequence[JudgedRow]) -> dict[str, float] | None:
    """Of the pairs that were judged in both orders; None where there are none.

    Returns:
        `first`: share of the readable verdicts for the answer shown first, 0.5 without bias; `bias`: the same less 0.5; `same`: share of
        the pairs for which the same answer was better in both orders; `both_right`: share of the pairs judged rightly in both; `num_pairs`.
    """
    pairs = [row.judged for row in rows if len(row.judged) == 2 and all(len(one.order) == 2 for one in row.judged)]
    if not pairs:
        return None
    read = [one.verdict for pair in pairs for one in pair if one.verdict is not None]
    chosen = [[None if one.verdict is None else one.order[int(one.verdict) - 1] for one in pair] for pair in pairs]
    first = _share([verdict == "1" for verdict in read]) if read else 0.5
    return {
        "first": first,
        "bias": first - 0.5,
        "same": _share([one is not None and one == other for one, other in chosen]),
        "both_right": _share([all(one.correct for one in pair) for pair in pairs]),
        "num_pairs": float(len(pairs)),
    }


def compare(benchmark: Benchmark, before: Sequence[ItemVerdict], after: Sequence[ItemVerdict]) -> dict[str, Any]:
    """Two runs on the rows that both have.

    Returns:
        `num_rows`, `lost` and `won` (rows that became wrong, or right), `p` (McNemar's exact test over these; None where rows are valued
        between 0 and 1), `scores` (published ones: before, after, difference, and low and high of the difference).
    """
    olds, news = ({row.key: row for row in benchmark.rows(judged)} for judged in (before, after))
    common = [key for key in olds if key in news]
    old, new = [olds[key] for key in common], [news[key] for key in common]
    whole = all(row.value in (0, 1) for row in (*old, *new))
    lost = sum(one.value > other.value for one, other in zip(old, new, strict=True))
    won = sum(one.value < other.value for one, other in zip(old, new, strict=True))
    scores_before, scores_after = benchmark.scores(old), benchmark.scores(new)
    changed, ranges = subtract_scores(scores_before, scores_after), difference_intervals(old, new, benchmark.scores)
    return {
        "num_rows": len(common),
        "left_out": len(olds) + len(news) - 2 * len(common),
        "main_score": benchmark.main_score,
        "lost": lost,
        "won": won,
        "p": mcnemar(lost, won) if whole else None,
        "scores": {
            name: {
                "before": scores_before[name],
                "after": scores_after[name],
                "difference": value,
                "low": ranges[name][0],
                "high": ranges[name][1],
            }
            for name, value in changed.items()
        },
    }


def _accuracy_interval(rows: Sequence[JudgedRow]) -> dict[str, float]:
    """Return the mean of the rows' values with Wilson's interval over clusters, which count as one case each."""
    value = mean([row.value for row in rows]) if rows else 0.0
    low, high = wilson(value, len({row.cluster for row in rows}))
    return {"value": value, "low": low, "high": high, "num_rows": float(len(rows))}


def _call_metrics(judged: Sequence[ItemVerdict]) -> dict[str, float | None]:
    calls = sum(one.num_calls for one in judged)
    return {
        "calls": calls / max(len(judged), 1),
        "call_rate": _share([one.num_calls > 0 for one in judged]),
        "ok_calls": sum(one.num_ok_calls for one in judged) / calls if calls else None,
    }


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


Summaries = Mapping[str, Mapping[str, dict[str, Any]]]  # benchmark -> way of asking -> summary
