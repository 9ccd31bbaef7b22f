"""The demo over seeds and over the arithmetics of other machines: how much of its result is chance.

Another machine adds up numbers in another order, and training amplifies the last bits. The same machine does so with other vector
instructions, another number of threads, or other micro-batches.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config import ConfigError

COLUMNS = ("after SFT", "after stage 2", "worst pair", "without tools", "minutes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """A way to compute the same numbers with other rounding errors."""

    title: str
    environment: Mapping[str, str] = field(default_factory=dict)  # of the processes
    num_threads: int | None = None  # of the base model's training and of the learner; by default those of the demo
    micro_batch_tokens: int | None = None  # of the learner; by default those of the demo

    @property
    def overrides(self) -> tuple[str, ...]:
        """Keys of the stages' configurations."""
        values = {"num_threads": self.num_threads, "micro_batch_tokens": self.micro_batch_tokens}
        return tuple(f"learner.{key}={value}" for key, value in values.items() if value is not None)

    def require_environment(self, option: str) -> None:
        """Require that this process was started with the environment: libraries read it as they are loaded.

        Raises:
            ConfigError: If a variable is not set; the message names it.
        """
        for name, value in self.environment.items():
            if os.environ.get(name) != value:
                raise ConfigError(f"{option}: set the environment variable {name}={value} for it, as --robustness does")


ARITHMETICS: Mapping[str, Arithmetic] = {
    "usual": Arithmetic(title="as it is"),
    "scalar": Arithmetic(title="no vector instructions", environment={"ATEN_CPU_CAPABILITY": "default"}),
    "one-thread": Arithmetic(
        title="one thread, smaller micro-batches",
        environment={"OMP_NUM_THREADS": "1"},
        num_threads=1,
        micro_batch_tokens=1536,
    ),
}


def run_all(
    root: Path, seeds: Sequence[int], arithmetics: Sequence[str], options: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Run the demo for each seed and arithmetic, one after another; finished runs are not run again.

    Args:
        root: Folder of the runs' folders; each run's output is in a log file beside its folder.
        seeds: Seeds of the demo.
        arithmetics: Keys of `ARITHMETICS`.
        options: Further options of `jobs.demo`.

    Yields:
        The name of each run and its `summary.json`; None if the run failed.
    """
    root.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for name in arithmetics:
            folder = root / f"seed{seed}-{name}"
            command = [sys.executable, "-m", "jobs.demo", "--seed", str(seed), "--arithmetic", name, *options]
            with (root / f"{folder.name}.log").open("a") as log:
                ended = subprocess.run(
                    [*command, "--out", str(folder)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | ARITHMETICS[name].environment,
                    check=False,
                )
            summary = folder / "summary.json"
            yield folder.name, json.loads(summary.read_text()) if ended.returncode == 0 else None


def row(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of one run, by column; NaN where one was not measured."""
    stage2, nothing = summary["stage2"], float("nan")
    return {
        "after SFT": summary["sft"]["accuracy"],
        "after stage 2": stage2["accuracy"],
        "worst pair": stage2.get("worst_pair_accuracy", nothing),
        "without tools": stage2["accuracy_without_tools"],
        "minutes": sum(summary["seconds"].values()) / 60,
    }


def table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """Return the table of all runs, with the median, the lowest and the highest value of each column."""
    shown = Table("run", *COLUMNS, title="the demo over seeds and arithmetics")
    for name, values in rows.items():
        shown.add_row(name, *(f"{values[column]:.3g}" for column in COLUMNS))
    shown.add_section()
    for title, of in (("median", statistics.median), ("lowest", min), ("highest", max)):
        shown.add_row(title, *(f"{of([values[column] for values in rows.values()]):.3g}" for column in COLUMNS))
    return shown


def write(root: Path, rows: Mapping[str, Mapping[str, float]]) -> Path:
    """Write the numbers of all runs as `robustness.json` and return its path."""
    path = root / "robustness.json"
    replace_text(path, json.dumps(rows, indent=2))
    return path
