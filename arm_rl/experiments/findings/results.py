"""What the runs say: read from their folders, gathered over seeds, and held against the claims."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arm_rl.experiments.findings.designs import DESIGNS, PAPER
from arm_rl.experiments.findings.setting import ENGRAVED, KINDS, PLAIN, STAGE1
from arm_rl.experiments.findings.statistics import Estimate, difference, estimate
from arm_rl.run.metrics_log import read_lines

ACCURACY, CALLS = "accuracy", "tool_calls"
BEFORE, AFTER = "cold_start", PAPER  # of training, for the second finding
WINDOW = 10  # steps that a curve is smoothed over

Values = dict[int, float]  # by seed


@dataclass(frozen=True, kw_only=True)
class Results:
    """All runs that are finished."""

    # run -> seed -> metrics of its evaluation on held-out samples
    judged: Mapping[str, Mapping[int, Mapping[str, float]]]
    curves: Mapping[str, Mapping[int, Mapping[str, Sequence[float]]]]  # design -> seed -> metric -> a value a step

    def values(self, run: str, metric: str) -> Values:
        """A metric of a run for each seed."""
        return {seed: metrics[metric] for seed, metrics in self.judged.get(run, {}).items() if metric in metrics}

    @property
    def designs(self) -> list[str]:
        """Those with a finished run, in the table's order."""
        return [name for name in DESIGNS if self.judged.get(name)]


def read(root: Path) -> Results:
    """Reads what lies below the findings' folder; a run that is not finished is left out."""
    judged: dict[str, dict[int, dict[str, float]]] = {}
    curves: dict[str, dict[int, dict[str, list[float]]]] = {}
    if (root / "base" / "evaluation.json").is_file():
        judged["base"] = {0: json.loads((root / "base" / "evaluation.json").read_text())}
    for folder in sorted((one for one in root.iterdir() if one.name.isdigit()), key=lambda one: int(one.name)):
        seed = int(folder.name)
        if (folder / BEFORE / "evaluation.json").is_file():
            judged.setdefault(BEFORE, {})[seed] = json.loads((folder / BEFORE / "evaluation.json").read_text())
        for name, design in DESIGNS.items():
            file = folder / name / "metrics.jsonl"
            lines = read_lines(file) if (folder / name / "export" / "config.json").is_file() else []
            evaluations = [line for line in lines if f"evaluation/{ACCURACY}" in line]
            if evaluations:
                judged.setdefault(name, {})[seed] = {
                    key.removeprefix("evaluation/"): value for key, value in evaluations[-1].items()
                }
                first = read_lines(folder / STAGE1 / "metrics.jsonl") if design.staged else []
                curves.setdefault(name, {})[seed] = _curves([*first, *lines])
    return Results(judged=judged, curves=curves)


def _curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Accuracy and calls a sample of each kind over the steps of training, a first stage's too; nan where a step had none of the kind."""
    steps = [line for line in lines if "learner/loss" in line]
    keys = {f"{metric}/{kind}": f"{logged}/{kind}" for metric, logged in _LOGGED.items() for kind in KINDS}
    return {key: smooth([line.get(logged, math.nan) for line in steps]) for key, logged in keys.items()}


_LOGGED = {ACCURACY: "rollout/accuracy", CALLS: "tools/calls"}


def smooth(values: Sequence[float]) -> list[float]:
    """Return means over the last WINDOW steps; nan is skipped."""
    means = []
    for end in range(1, len(values) + 1):
        known = [value for value in values[max(0, end - WINDOW) : end] if not math.isnan(value)]
        means.append(math.fsum(known) / len(known) if known else math.nan)
    return means


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Something that the figures are held against."""

    text: str
    estimate: Estimate | None  # of the difference that it is about; None: not measured
    verdict: str  # holds, does not hold, open, or not measured


def claims(results: Results) -> list[Claim]:
    """The paper's findings, each as a difference paired by seed."""

    def compare(text: str, first: str, second: str, metric: str, *, above: bool) -> Claim:
        found = difference(results.values(first, metric), results.values(second, metric))
        return make_claim(text, found, above=above)

    gains = {run: _accuracy_gain(results, run) for run in (BEFORE, AFTER)}
    return [
        compare("accuracy only uses the tool less than the paper's reward", "accuracy", PAPER, CALLS, above=False),
        compare("accuracy only is less accurate than it", "accuracy", PAPER, ACCURACY, above=False),
        compare("stage 1 lifts accuracy only", "accuracy_staged", "accuracy", ACCURACY, above=True),
        compare(
            "a fixed bonus a call uses the tool more than the paper's reward", "call_bonus", PAPER, CALLS, above=True
        ),
        compare("a fixed bonus a call is less accurate than it", "call_bonus", PAPER, ACCURACY, above=False),
        compare("a fixed bonus a sample is less accurate than it", "sample_bonus", PAPER, ACCURACY, above=False),
        compare("stage 1 lifts the adaptive reward", PAPER, "adaptive", ACCURACY, above=True),
        make_claim("before training, forcing the tool does not help", estimate_of(gains[BEFORE]), above=False),
        make_claim("after training, it helps", estimate_of(gains[AFTER]), above=True),
    ]


def make_claim(text: str, found: Estimate | None, *, above: bool) -> Claim:
    """Return a claim that a difference is above, or below, 0."""
    if found is None:
        return Claim(text=text, estimate=None, verdict="not measured")
    return Claim(text=text, estimate=found, verdict=found.verdict_above(0.0) if above else found.verdict_below(0.0))


def estimate_of(values: Values) -> Estimate | None:
    """Of a value for each seed; None where there are none."""
    return estimate(list(values.values())) if values else None


def _accuracy_gain(results: Results, run: str) -> Values:
    """Return the accuracy with the tool forced less that with none offered, for each seed."""
    forced, none = (results.values(run, f"{ACCURACY}_{way}") for way in ("with_prefill", "without_tools"))
    return {seed: forced[seed] - none[seed] for seed in forced.keys() & none.keys()}


COLUMNS = {
    "accuracy": ACCURACY,
    "needs the tool": f"{ACCURACY}/{ENGRAVED}",
    "does not": f"{ACCURACY}/{PLAIN}",
    "calls a sample": CALLS,
    "needs it": f"{CALLS}/{ENGRAVED}",
    "does not need it": f"{CALLS}/{PLAIN}",
}
WAYS = {
    "offered": ACCURACY,
    "not offered": f"{ACCURACY}_without_tools",
    "forced": f"{ACCURACY}_with_prefill",
    "box on the tile where forced": "box_hit_with_prefill",
}


def summary(results: Results) -> dict[str, Any]:
    """All of it, for summary.json."""
    metrics = {key for seeds in results.judged.values() for one in seeds.values() for key in one if key != "step"}
    judged = {
        run: {
            metric: _finite_values(found)
            for metric in sorted(metrics)
            if (found := estimate_of(_numeric_values(results, run, metric)))
        }
        for run in results.judged
    }
    return {
        "judged": judged,
        "seeds": {
            run: {str(seed): dict(metrics) for seed, metrics in seeds.items()} for run, seeds in results.judged.items()
        },
        "claims": [
            {"text": one.text, "verdict": one.verdict, "difference": _finite_values(one.estimate)}
            for one in claims(results)
        ],
    }


def _finite_values(found: Estimate | None) -> dict[str, float | None] | None:
    """Return an estimate for JSON, which knows no infinity: a missing bound is null."""
    if found is None:
        return None
    return {name: value if math.isfinite(value) else None for name, value in dataclasses.asdict(found).items()}


def _numeric_values(results: Results, run: str, metric: str) -> Values:
    return {seed: value for seed, value in results.values(run, metric).items() if isinstance(value, int | float)}
