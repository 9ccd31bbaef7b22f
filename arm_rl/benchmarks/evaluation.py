"""The results of an evaluation: summaries, comparisons, and the check that a folder holds the verdicts of one model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arm_rl.benchmarks import BENCHMARKS
from arm_rl.benchmarks.base import ItemVerdict
from arm_rl.benchmarks.results import FILE, Key, ResultsError, read_results
from arm_rl.benchmarks.runner import NO_TOOLS, TOOLS, ItemQuestion
from arm_rl.benchmarks.summary import compare, summarize
from arm_rl.core.atomic_file import replace_text
from arm_rl.core.stage_config import TrainConfig
from arm_rl.judge.backends import Server


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationKey:
    """Settings, apart from the questions, on which the verdicts in a folder depend."""

    model: str
    server: str | None
    temperature: float
    session: dict[str, Any]


def check_same_model(folder: Path, config: TrainConfig, server: Server | None) -> None:
    """Require that a folder holds the verdicts of this model with these settings, or none yet.

    Args:
        folder: Folder of the evaluation; made if it does not exist.
        config: Configuration of the evaluation.
        server: Server of the model; None if the model runs on own engines.

    Raises:
        ResultsError: If the folder holds verdicts of another model or with other settings.
    """
    now = EvaluationKey(
        model=server.model if server else config.model.path,
        server=server.url if server else None,
        temperature=config.evaluation.temperature,
        session=asdict(config.session),
    )
    file = folder / "model.json"
    if file.exists():
        before = json.loads(file.read_text())
        for name, value in asdict(now).items():
            if before.get(name) != value:
                raise ResultsError(
                    f"{folder} holds verdicts with {name} {before.get(name)!r}, not {value!r}: choose another --out"
                )
    replace_text(file, json.dumps(asdict(now), indent=2))


def summarize_all(questions: Sequence[ItemQuestion], known: Mapping[Key, ItemVerdict]) -> dict[str, dict[str, Any]]:
    """Return the summary of each benchmark and way of asking: benchmark -> way -> summary."""
    summaries: dict[str, dict[str, Any]] = {}
    for name, way in dict.fromkeys((question.benchmark, question.way) for question in questions):
        keys = [question.key for question in questions if (question.benchmark, question.way) == (name, way)]
        judged = [known[key] for key in keys if key in known]
        summaries.setdefault(name, {})[way] = summarize(BENCHMARKS[name], judged, len(keys))
    return summaries


def compare_ways(questions: Sequence[ItemQuestion], known: Mapping[Key, ItemVerdict]) -> dict[str, dict[str, Any]]:
    """Compare, row by row, the verdicts with tools to those without tools: benchmark -> comparison."""
    compared = {}
    for name in dict.fromkeys(question.benchmark for question in questions):
        ways = {
            way: [
                known[question.key]
                for question in questions
                if (question.benchmark, question.way) == (name, way) and question.key in known
            ]
            for way in (NO_TOOLS, TOOLS)
        }
        compared[name] = compare(BENCHMARKS[name], ways[NO_TOOLS], ways[TOOLS])
    return compared


def compare_runs(before: Path, after: Path) -> dict[str, dict[str, Any]]:
    """Compare two evaluations on the rows that both have: "BENCHMARK, WAY" -> comparison.

    Raises:
        ResultsError: If a folder holds no verdicts, or the two have no benchmark in common.
    """
    first, second = _verdicts_by_benchmark(before), _verdicts_by_benchmark(after)
    common = [name for name in first if name in second]
    if not common:
        raise ResultsError(f"{before} and {after} have no benchmark in common: {', '.join(first)}; {', '.join(second)}")
    return {name: compare(BENCHMARKS[name.partition(",")[0]], first[name], second[name]) for name in common}


def _verdicts_by_benchmark(folder: Path) -> dict[str, list[ItemVerdict]]:
    verdicts: dict[str, list[ItemVerdict]] = {}
    for (benchmark, way, _), judged in read_results(folder).items():
        verdicts.setdefault(f"{benchmark}, {way}", []).append(judged)
    if not verdicts:
        raise ResultsError(f"{folder}: there are no verdicts ({FILE})")
    return verdicts
