"""The findings in markdown: what was judged, with intervals, and what holds."""

import math
from collections.abc import Iterable, Mapping, Sequence

from arm_rl.experiments.findings.designs import DESIGNS
from arm_rl.experiments.findings.results import ACCURACY, COLUMNS, WAYS, Results, claims, estimate_of
from arm_rl.experiments.findings.statistics import Estimate

_TITLES = {"base": "base model", "cold_start": "cold start", **{name: design.title for name, design in DESIGNS.items()}}


def markdown(results: Results) -> str:
    """Three tables: designs, the tool forced and forbidden, claims."""
    runs = [run for run in _TITLES if run in results.judged]
    both = [run for run in runs if results.values(run, WAYS["forced"])]
    held = [(one.text, _format_difference(one.estimate), one.verdict) for one in claims(results)]
    return "\n".join(
        [
            *_format_table(
                ("design", *COLUMNS, "seeds", "accuracy, worst seed"),
                ((*_format_row(results, run, COLUMNS), _worst_accuracy(results, run)) for run in runs),
            ),
            "",
            "Accuracy with the tool offered, not offered, and forced:",
            "",
            *_format_table(("", *WAYS, "seeds"), (_format_row(results, run, WAYS) for run in both)),
            "",
            *_format_table(("claim", "difference, paired by seed", ""), held),
            "",
            "(Means over seeds with 95 % intervals of Student's t, of held-out samples judged at temperature 1.)",
            "",
        ]
    )


def _format_row(results: Results, run: str, columns: Mapping[str, str]) -> tuple[str, ...]:
    found = [estimate_of(results.values(run, metric)) for metric in columns.values()]
    number = max((one.num_seeds for one in found if one), default=0)
    return _TITLES[run], *map(_format_mean, found), str(number)


def _worst_accuracy(results: Results, run: str) -> str:
    """Return the accuracy of the worst seed: a mean does not show that some never learned."""
    return f"{min(results.values(run, ACCURACY).values()):.3f}"


def _format_mean(found: Estimate | None) -> str:
    if found is None:
        return ""
    return f"{found.mean:.3f}" + ("" if math.isinf(found.low) else f" ± {found.high - found.mean:.3f}")


def _format_difference(found: Estimate | None) -> str:
    if found is None:
        return ""
    return f"{found.mean:+.3f}" + ("" if math.isinf(found.low) else f" ({found.low:+.3f} to {found.high:+.3f})")


def _format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
