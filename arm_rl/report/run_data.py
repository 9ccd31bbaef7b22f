"""What a run folder holds beside its trajectories, read for its report; parts that are not there yet are empty."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from arm_rl.core.errors import UserError
from arm_rl.run.metrics_log import read_lines

EVALUATION = "-evaluation"  # ends the stage's name in the trajectories of an evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class RunData:
    """A run, as far as it got."""

    name: str
    # of summary.json: numbers of the held-out evaluation after each stage, in order
    stages: dict[str, dict[str, float]]
    seconds: dict[str, float]  # of each phase
    lines: list[dict[str, Any]]  # of metrics.jsonl, stage after stage; one for each step

    @property
    def stage_names(self) -> list[str]:
        """Stages that have steps, in order."""
        return list(dict.fromkeys(line["stage"] for line in self.lines))

    def with_lines(self, lines: list[dict[str, Any]]) -> "RunData":
        """With more numbers of its steps."""
        known = {(line["stage"], line["step"]) for line in self.lines}
        return dataclasses.replace(
            self, lines=_join_by_step([*self.lines, *(one for one in lines if (one["stage"], one["step"]) in known)])
        )

    @property
    def order(self) -> list[str]:
        """All stages, in order."""
        return list(dict.fromkeys([*self.stages, *self.stage_names]))


def read(folder: Path) -> RunData:
    """Reads a run folder, or a folder of them (one for each stage)."""
    summary = _read_json(folder / "summary.json")
    stages = {name: value for name, value in summary.items() if isinstance(value, dict) and "accuracy" in value}
    lines = [line for path in find_files(folder, "metrics.jsonl") for line in read_lines(path)]
    order = list(dict.fromkeys([*stages, *(line["stage"] for line in lines)]))
    return RunData(
        name=folder.resolve().name,
        stages=stages,
        seconds=summary.get("seconds", {}),
        lines=_join_by_step(sorted(lines, key=lambda line: order.index(line["stage"]))),
    )


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files of the folder itself, then of the folders in it, oldest first."""
    return sorted(folder.glob(pattern)) + sorted(folder.glob(f"*/{pattern}"), key=lambda path: path.stat().st_mtime)


def read_config(path: Path) -> DictConfig | None:
    """A run's `config.yaml` as it was written, whatever version wrote it; None where there is none."""
    if not path.exists():
        return None
    config = OmegaConf.load(path)
    return config if isinstance(config, DictConfig) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON object is needed")
    return content


def _join_by_step(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the lines of one step: an evaluation writes a line of its own."""
    joined: dict[tuple[str, int], dict[str, Any]] = {}
    for line in lines:
        joined[line["stage"], line["step"]] = joined.get((line["stage"], line["step"]), {}) | line
    return list(joined.values())
