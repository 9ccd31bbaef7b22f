"""What a run folder holds, read for its report; parts that are not there yet are empty."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from arm_rl import trajectory_log
from arm_rl.core.errors import UserError
from arm_rl.metrics_log import read_lines
from arm_rl.trajectory_log import TrajectoryLog

EVALUATION = "-evaluation"  # ends the stage's name in the trajectories of an evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """A run, as far as it got."""

    name: str
    stages: dict[str, dict[str, float]]  # of summary.json: numbers of the held-out evaluation after each stage, in order
    seconds: dict[str, float]  # of each phase
    lines: list[dict[str, Any]]  # of metrics.jsonl, stage after stage; one for each step
    logs: list[TrajectoryLog]  # the newest of each stage, in the order of the stages: evaluations where there are any

    @property
    def stage_names(self) -> list[str]:
        """Stages that have steps, in order."""
        return list(dict.fromkeys(line["stage"] for line in self.lines))


def read(folder: Path) -> RunData:
    """Reads a run folder, or a folder of them (one for each stage)."""
    summary = _read_json(folder / "summary.json")
    stages = {name: value for name, value in summary.items() if isinstance(value, dict) and "accuracy" in value}
    order = list(stages)
    lines = [line for path in _files(folder, "metrics.jsonl") for line in read_lines(path)]
    order += [name for name in dict.fromkeys(line["stage"] for line in lines) if name not in order]
    return RunData(
        name=folder.resolve().name,
        stages=stages,
        seconds=summary.get("seconds", {}),
        lines=_by_step(sorted(lines, key=lambda line: order.index(line["stage"]))),
        logs=_newest_logs(folder, order),
    )


def stage_of(log: TrajectoryLog) -> str:
    """The stage whose model a log shows."""
    return log.stage.removesuffix(EVALUATION)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON object is needed")
    return content


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files of the folder itself, then of those in it, oldest first."""
    return sorted(folder.glob(pattern)) + sorted(folder.glob(f"*/{pattern}"), key=lambda path: path.stat().st_mtime)


def _by_step(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of one step joined: an evaluation writes one of its own."""
    joined: dict[tuple[str, int], dict[str, Any]] = {}
    for line in lines:
        joined.setdefault((line["stage"], line["step"]), {}).update(line)
    return list(joined.values())


def _read_log(path: Path) -> TrajectoryLog:
    try:
        return trajectory_log.read(path)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(f"{path}: not a file of trajectories: {error}; without it, the report is made of the others") from error


def _newest_logs(folder: Path, order: list[str]) -> list[TrajectoryLog]:
    """The last log of each stage; what was written while training only where nothing was evaluated."""
    newest = {path.stem.rpartition("-")[0]: path for path in _files(folder, "trajectories/*.parquet")}  # files of a stage sort by step
    evaluations = {stage: path for stage, path in newest.items() if stage.endswith(EVALUATION)}
    logs = [_read_log(path) for path in (evaluations or newest).values()]
    return sorted(logs, key=lambda log: order.index(stage_of(log)) if stage_of(log) in order else len(order))
