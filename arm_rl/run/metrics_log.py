"""Where metrics go: `metrics.jsonl` in the run folder, a line a step on the console, Weights & Biases and TensorBoard where configured."""

import json
import math
import re
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config import MetricsConfig
from arm_rl.core.errors import UserError
from arm_rl.run.tensorboard_log import TensorboardLog
from arm_rl.run.wandb_log import WandbPage

PARTS = ("rollout", "reward", "learner", "tools", "time", "evaluation", "recovery", "data")
_NAME = re.compile(rf"(?:{'|'.join(PARTS)})/\S+")

# What a step's line on the console shows, where the step has it.
SHOWN = {
    "learner/loss": "loss",
    "reward/mean": "reward",
    "rollout/accuracy": "accuracy",
    "tools/calls": "tool calls",
    "evaluation/accuracy": "held-out accuracy",
    "evaluation/tool_calls": "held-out tool calls",
}


class MetricsLog:
    """Writes a run's metrics. A context manager: leaving it finishes the page at Weights & Biases, as failed where an error passes."""

    def __init__(
        self,
        folder: Path,
        config: MetricsConfig,
        run_config: Any,
        total_steps: int,
        *,
        stage: str = "",
        first: Mapping[str, float] | None = None,
        console: Console | None = None,
    ) -> None:
        """Opens the log.

        Args:
            folder: the run's; `metrics.jsonl` in it is appended to, and `wandb/` is created. In a run that is started again, the first
                step that is logged replaces what stands there of this step and later ones.
            config: where they go beside the folder and the console.
            run_config: the run's configuration, a dataclass, as Weights & Biases shows it.
            total_steps: of this stage.
            stage: written to every line; several stages may share a folder.
            first: metrics that go into the first line alone, such as what was found when the data were read.
            console: by default standard output.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        self._stage = stage
        self._total_steps = total_steps
        self._seconds: deque[float] = deque(maxlen=20)  # of the last steps
        self._last_time = time.monotonic()
        self._last_step: int | None = None
        self._first = first or {}
        self._page = None if config.wandb == "disabled" else WandbPage(folder, config, run_config, stage, PARTS)
        self._tensorboard = TensorboardLog(folder, stage) if config.tensorboard else None
        self._unread: list[Path] = []  # trajectory logs that are not on the page yet
        console = console or Console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(stage or folder.name, total=total_steps, left="")
        self._progress.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a step's metrics. A second call for the same step adds to it (an evaluation, say).

        Args:
            step: 1 for the first; 0 is before the first.
            metrics: by name (`rollout/…`, ...); a value that is not finite is written to `metrics.jsonl` as null.

        Raises:
            ValueError: a name that starts with no known part.
        """
        if self._last_step is None:
            metrics = {**self._first, **metrics}
        wrong = [name for name in metrics if not _NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r}: a metric's name starts with one of {', '.join(PARTS)} and a slash")
        line: dict[str, Any] = {"step": step, "stage": self._stage}
        line |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        if self._last_step is None:
            _drop_lines(self._path, self._stage, step)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._page is not None:
            self._page.log(step, metrics)
            self._log_trajectories(self._page)
        if self._tensorboard is not None:
            self._tensorboard.log(step, metrics)
        self._show(step, metrics)

    def log_trajectories(self, path: Path) -> None:
        """Log some rows of a trajectory file to the page, once the file is written."""
        self._unread.append(path)

    def log_artifact(self, kind: Literal["checkpoint", "export"], folder: Path) -> None:
        """Log a checkpoint or an exported model to Weights & Biases, if the configuration says so."""
        if self._page is not None:
            self._page.log_artifact(kind, folder)

    def close(self, failed: bool = False) -> None:
        """Finishes the progress bar, the page and the event file."""
        self._progress.stop()
        page, self._page = self._page, None
        if page is not None:
            self._log_trajectories(page)
            page.finish(failed)
        if self._tensorboard is not None:
            self._tensorboard.finish()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(failed=kind is not None)

    def _log_trajectories(self, page: WandbPage) -> None:
        written, self._unread = (
            [path for path in self._unread if path.exists()],
            [path for path in self._unread if not path.exists()],
        )
        for path in written:
            page.log_trajectories(path)

    def _show(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if step != self._last_step:
            self._seconds.append(metrics.get("time/step", now - self._last_time))
        self._last_time, self._last_step = now, step
        numbers = [f"{label} {metrics[name]:.3g}" for name, label in SHOWN.items() if name in metrics]
        left = _time_left(self._seconds, self._total_steps - step)
        head = f"{self._stage or 'step'} {step}/{self._total_steps}"
        # soft_wrap: where the output is no terminal, a line stays a line
        self._progress.console.print(
            "  ".join([head, *numbers, f"{self._seconds[-1]:.1f} s", left]), highlight=False, soft_wrap=True
        )
        self._progress.update(self._task, completed=step, left=left)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`. One that a crash cut short is left out: only the last can be.

    Raises:
        UserError: another line is broken; the message names it.
    """
    read: list[dict[str, Any]] = []
    lines = path.read_text(errors="replace").splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        if line.endswith("\n") and line.strip():
            try:
                read.append(json.loads(line))
                read[-1]["stage"], read[-1]["step"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}: line {number} is no step's metrics ({error!r}): remove it") from error
    return read


def _drop_lines(path: Path, stage: str, first_step: int) -> None:
    """Remove the lines of steps that are repeated, and an incomplete last line."""
    if not path.exists():
        return
    kept = [line for line in read_lines(path) if line["stage"] != stage or line["step"] < first_step]
    replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _time_left(seconds: deque[float], num_steps: int) -> str:
    if num_steps <= 0:
        return "done"
    total = round(sum(seconds) / len(seconds) * num_steps)
    hours, minutes, rest = total // 3600, total % 3600 // 60, total % 60
    if hours:
        return f"{hours} h {minutes} min left"
    return f"{minutes} min {rest} s left" if minutes else f"{rest} s left"
