"""The results of an evaluation: summaries, comparisons, and the check that a folder holds the verdicts of one model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arm_rl.benchmarks import BENCHMARKS
from arm_rl.benchmarks.base import ItemVerdict
from arm_rl.benchmarks.results import FILE, Key, ResultsError, read_results
from arm_rl.benchmarks.runner import NO_TOOLS, TOOLS, ItemQuestion
from arm_rl.benchmarks.summary import compare, summarize
from arm_rl.core.errors import UserError
from arm_rl.core.session import Start
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from arm_rl.judge.backends import Server
from arm_rl.run.folder import require_same_settings


def check_same_model(folder: Path, config: TrainConfig, server: Server | None) -> None:
    """Require that a folder holds the verdicts of this model with these settings, or none yet.

    Args:
        folder: Folder of the evaluation; made if it does not exist.
        config: Configuration of the evaluation.
        server: Server of the model; None if the model runs on own engines.

    Raises:
        ConfigError: If the folder holds verdicts of another model or with other settings.
    """
    settings = {
        "model": server.model if server else config.model.path,
        "server": server.url if server else None,
        "temperature": config.evaluation.temperature,
        "seed": config.run.seed,
        "session": asdict(config.session),
        "template": asdict(config.template),
        "pixels": [config.model.min_pixels, config.model.max_pixels],
    }
    require_same_settings(folder / "model.json", settings, remedy="choose another --out")


def sample_check(config: TrainConfig, template: Template, server: Server | None) -> Callable[[Sample], None]:
    """Return a function that raises UserError for a sample that no session can begin with."""

    def check(sample: Sample) -> None:
        if server is None and len(sample.images) > config.rollout.max_images:
            raise UserError(
                f"the prompt has {len(sample.images)} images, rollout.max_images is {config.rollout.max_images}"
            )
        Start.of(sample, template).require_fit(config.session)

    return check


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
