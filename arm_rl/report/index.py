"""What the report knows of every trajectory of a run without holding it: a few numbers a row, by which a reader filters and sorts.

A file of trajectories is read once, batch by batch, and only its light columns; 100,000 rows are about 5 MB.
"""

import json
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from arm_rl.core import trajectory_file
from arm_rl.core.errors import UserError
from arm_rl.report.embedding import dump
from arm_rl.report.run_data import EVALUATION, find_files

CORRECT, FORMAT_OK = 1, 2  # bits of a row's flags
# numbers of a row; the reward stands beside them
COLUMNS = ("sample", "track", "group", "index", "flags", "end", "calls")
LONGEST_NAME = 60  # characters of a tool's name; a model may write anything there

Calls = tuple[tuple[str, str], ...]  # (tool, status) of a trajectory's calls, in order


class Names:
    """Numbers for names, in the order of their first use."""

    def __init__(self) -> None:
        self.names: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, name: Any) -> int:
        """The name's number; a new one for a new name."""
        if name not in self._numbers:
            self._numbers[name] = len(self.names)
            self.names.append(name)
        return self._numbers[name]


@dataclass(frozen=True, kw_only=True, slots=True)
class LogFile:
    """A file of trajectories and its rows' numbers."""

    path: Path
    stage: str
    step: int
    columns: dict[str, array]  # by `COLUMNS`: N numbers each
    rewards: array  # N; not a number where the scorer failed
    tool_seconds: Counter[tuple[str, str]]  # by tool and status

    @property
    def name(self) -> str:
        """What the file is known by in the page."""
        return self.path.stem

    @property
    def num_rows(self) -> int:
        """Trajectories."""
        return len(self.rewards)

    @property
    def is_evaluation(self) -> bool:
        """Held-out samples, not training."""
        return self.stage.endswith(EVALUATION)

    @property
    def model(self) -> str:
        """The stage whose model it shows."""
        return self.stage.removesuffix(EVALUATION)

    def reward(self, row: int) -> float | None:
        """Of a trajectory; None where the scorer failed."""
        return None if math.isnan(self.rewards[row]) else self.rewards[row]

    def groups(self) -> dict[int, list[int]]:
        """The rows of each group."""
        rows: dict[int, list[int]] = {}
        for row, group in enumerate(self.columns["group"]):
            rows.setdefault(group, []).append(row)
        return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """The trajectories of a run folder, as far as it got."""

    folder: Path
    files: list[LogFile] = field(default_factory=list)  # stage after stage, step after step
    names: dict[str, Names] = field(
        default_factory=lambda: {name: Names() for name in ("sample", "track", "end", "calls")}
    )

    def refresh(self, stages: Sequence[str]) -> None:
        """Reads the files that are new or were written again.

        Args:
            stages: their order.

        Raises:
            UserError: a file is broken.
        """
        known = {(file.path, file.path.stat().st_mtime_ns): file for file in self.files if file.path.exists()}
        found = {path.stem: path for path in find_files(self.folder, "trajectories/*.parquet")}  # the demo keeps copies
        files = [known.get((path, path.stat().st_mtime_ns)) or self._load_file(path) for path in found.values()]
        order = {stage: number for number, stage in enumerate(stages)}
        self.files[:] = sorted(
            files, key=lambda file: (order.get(file.model, len(order)), file.step, file.is_evaluation)
        )

    def calls(self, file: LogFile, row: int) -> Calls:
        """The calls of a trajectory."""
        return self.names["calls"].names[file.columns["calls"][row]]

    def file(self, name: str) -> LogFile | None:
        """A file by its name."""
        return next((file for file in self.files if file.name == name), None)

    def tool_use(self, files: Iterable[LogFile]) -> Counter[tuple[str, str]]:
        """How often which tool was called with which status."""
        used: Counter[tuple[str, str]] = Counter()
        for file in files:
            for number, times in Counter(file.columns["calls"]).items():
                for call in self.names["calls"].names[number]:
                    used[call] += times
        return used

    def as_json(self, files: Sequence[LogFile]) -> str:
        """The index for the page: the columns of all files end to end."""
        tables = {name: table.names for name, table in self.names.items()}
        columns = {name: [number for file in files for number in file.columns[name]] for name in COLUMNS}
        rewards = [None if math.isnan(reward) else round(reward, 4) for file in files for reward in file.rewards]
        about = [
            {
                "name": file.name,
                "stage": file.stage,
                "step": file.step,
                "evaluation": file.is_evaluation,
                "rows": file.num_rows,
            }
            for file in files
        ]
        return dump({"files": about, "names": tables, "columns": columns | {"reward": rewards}})

    def _load_file(self, path: Path) -> LogFile:
        try:
            return self._read(path)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise UserError(
                f"{path}: not a file of trajectories: {error}; without it, the report is made of the others"
            ) from error

    def _read(self, path: Path) -> LogFile:
        stage, step = trajectory_file.read_stage_and_step(path)
        columns = {name: array("i") for name in COLUMNS}
        rewards, groups = array("d"), Names()
        seconds: Counter[tuple[str, str]] = Counter()
        for row in trajectory_file.read_summaries(path):
            events = [event for turn in row["turns"] for event in turn["tool_events"]]
            calls = tuple((_tool_name(event["call"]), event["status"]) for event in events)
            for call, event in zip(calls, events, strict=True):
                seconds[call] += event["seconds"]
            numbers = {
                "sample": self.names["sample"].number(row["sample_id"]),
                "track": self.names["track"].number(row["track"]),
                "group": groups.number(row["group_id"]),
                "index": row["index"],
                "flags": CORRECT * row["correct"] + FORMAT_OK * row["format_ok"],
                "end": self.names["end"].number(row["end"]),
                "calls": self.names["calls"].number(calls),
            }
            for name, number in numbers.items():
                columns[name].append(number)
            rewards.append(math.nan if row["reward"] is None else row["reward"])
        return LogFile(path=path, stage=stage, step=step, columns=columns, rewards=rewards, tool_seconds=seconds)


def _tool_name(call: str) -> str:
    name = json.loads(call)["name"].encode("utf-8", "replace").decode("utf-8")
    return name[:LONGEST_NAME] or "(unreadable)"
