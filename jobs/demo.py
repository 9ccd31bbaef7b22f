"""The main job, `make demo`: trains the small judge through all its stages on this machine and shows what it learned.

    data -> base model -> demonstrations, SFT -> GRPO stage 1 -> GRPO stage 2 -> export, server, one judgment -> report

Started again, it goes on where it was: a phase whose product is there is not done again.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from actors.cluster import cluster
from actors.model_server import ModelServer
from arm_rl.core import session
from arm_rl.core.config import SftConfig, TrainConfig
from arm_rl.core.config_file import load
from arm_rl.core.template import Template
from arm_rl.core.types import Message, Sample
from arm_rl.data import read_samples
from arm_rl.demonstrations import write_demonstrations
from arm_rl.digits import dataset
from arm_rl.digits.base import make_base
from arm_rl.digits.teacher import ScriptedTeacher
from arm_rl.evaluation import evaluate_model
from arm_rl.grpo import train_grpo
from arm_rl.judge import ServerPolicy
from arm_rl.metrics_log import read_lines
from arm_rl.report import write_report
from arm_rl.screening import screened_sessions
from arm_rl.sft import train_sft
from jobs.command_line import guarded
from rewards.judgment import is_correct
from tools import load_tools
from tools.local import LocalTools

CONFIG, SFT_CONFIG = "configs/demo.yaml", "configs/demo_sft.yaml"
# Stage 1 is configs/demo.yaml but for these.
STAGE1 = (
    "run.name=stage1",
    "reward.name=stage1",
    "num_steps=12",
    "learner.learning_rate=5.0e-5",
    "learner.schedule=constant",
    "evaluation.initial=true",
)
# Seconds that a phase takes on two cores, for the time that is left.
USUAL_SECONDS = {"data": 7, "base": 120, "base_evaluation": 30, "demonstrations": 6, "sft": 28, "stage1": 68, "stage2": 180, "judge": 23}
SILENT = ("data", "base_evaluation", "demonstrations", "judge")  # phases that show no progress themselves
COLUMNS = ("accuracy", "tool_calls", "tool_rate", "box_hit", "accuracy_without_tools", "num_samples")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of everything."""

    train: int = 3600  # samples
    held_out: int = 480  # samples
    demonstrations: int = 1920  # that pass the screening
    pretraining: float = 1.0  # share of its steps
    overrides: tuple[str, ...] = ()  # of both GRPO stages


FULL = Size()
SHORT = Size(train=128, held_out=32, demonstrations=128, pretraining=0.02, overrides=("num_steps=2", "algorithm.drop_flat_groups=false"))


class Demo:
    """The phases, in order. Each writes its product into the run folder."""

    def __init__(self, folder: Path, seed: int, size: Size) -> None:
        self.folder, self.seed, self.size = folder, seed, size
        self.data, self.base = folder / "data", folder / "base_model"
        self.common = [f"run.root={folder}", f"run.seed={seed}"]
        self.console = Console(highlight=False, soft_wrap=True)

    def run(self) -> None:
        """Everything that is not done yet, then the table and the report."""
        phases: dict[str, tuple[str, Callable[[], object]]] = {
            "data": ("handwritten digits, engraved so that only the zoom tool can read them", self._make_data),
            "base": ("the base model: a small Qwen2.5-VL, taught to see, to match and to write calls", self._make_base),
            "base_evaluation": ("the base model, judging held-out samples", self._evaluate_base),
            "demonstrations": ("a teacher's sessions, screened for format, judgment and tool use", self._demonstrate),
            "sft": ("SFT: the cold start", self._sft),
            "stage1": ("GRPO stage 1: reach for the tool", self._stage1),
            "stage2": ("GRPO stage 2: look at the right place, and be right", self._stage2),
            "judge": ("the exported judge behind an OpenAI-compatible server", self._judge),
        }
        done = self._read_seconds()
        for number, (name, (title, phase)) in enumerate(phases.items(), 1):
            note = "done before" if name in done else _time_left(done)
            self.console.print(f"[bold]\\[{number}/{len(phases)}] {title}[/] ({note})")
            if name in done:
                continue
            started = time.monotonic()
            with self.console.status(title) if name in SILENT else contextlib.nullcontext():
                phase()
            done[name] = round(time.monotonic() - started, 1)
            self._seconds_file.write_text(json.dumps(done))
        self._summarize(done)

    def _make_data(self) -> None:
        dataset.write(self.data / "train.parquet", seed=self.seed, split="train", num_samples=self.size.train)
        dataset.write(self.data / "held_out.parquet", seed=self.seed, split="held_out", num_samples=self.size.held_out)

    def _make_base(self) -> None:
        make_base(self.base, self._sft_config().template, seed=self.seed, share=self.size.pretraining)

    def _evaluate_base(self) -> None:
        asyncio.run(evaluate_model(self._config("run.name=base", f"model.path={self.base}")))

    def _demonstrate(self) -> None:
        config = self._config(f"model.path={self.base}")
        tools, template = _tools_and_template(config)
        teacher = ScriptedTeacher(seed=self.seed)
        sessions = screened_sessions(
            read_samples(config.data.train, list(tools)),
            lambda sample: teacher.policy(sample, template),
            LocalTools(tools),
            config.session,
            template,
        )
        write_demonstrations(self.data / "demonstrations.parquet", list(itertools.islice(sessions, self.size.demonstrations)))

    def _sft(self) -> None:
        asyncio.run(train_sft(self._sft_config()))

    def _stage1(self) -> None:
        asyncio.run(train_grpo(self._config(*STAGE1, f"model.path={self.folder / 'sft' / 'export'}", *self.size.overrides)))

    def _stage2(self) -> None:
        asyncio.run(train_grpo(self._config(f"model.path={self.folder / 'stage1' / 'export'}", *self.size.overrides)))

    def _judge(self) -> None:
        """Serves the exported judge and lets it judge one held-out sample, through the session loop of training."""
        export = self.folder / "export"
        shutil.copytree(self.folder / "stage2" / "export", export, dirs_exist_ok=True)
        config = self._config(f"model.path={export}")
        tools, template = _tools_and_template(config)
        sample = read_samples(config.data.held_out, list(tools))[0]
        with ModelServer(export, self.folder / "server.log", use_gpu=False, max_model_len=config.rollout.max_model_len) as server:

            async def judge() -> session.Session:
                policy = ServerPolicy(server.base_url, "judge", template)
                try:
                    return await session.run(sample, policy, LocalTools(tools), config.session, template=template)
                finally:
                    await policy.close()

            judged = asyncio.run(judge())
        text = _transcript(sample, judged)
        (self.folder / "transcript.txt").write_text(text)
        self.console.print(text, markup=False)

    def _config(self, *overrides: str) -> TrainConfig:
        data = [f"data.train=[{self.data / 'train.parquet'}]", f"data.held_out=[{self.data / 'held_out.parquet'}]"]
        return load(TrainConfig, CONFIG, [*self.common, *data, *overrides])

    def _sft_config(self) -> SftConfig:
        data = f"data.train=[{self.data / 'demonstrations.parquet'}]"
        return load(SftConfig, SFT_CONFIG, [*self.common, data, f"model.path={self.base}"])

    @property
    def _seconds_file(self) -> Path:
        return self.folder / "seconds.json"

    def _read_seconds(self) -> dict[str, float]:
        """Seconds of the phases that are done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return json.loads(self._seconds_file.read_text()) if self._seconds_file.exists() else {}

    def _summarize(self, seconds: dict[str, float]) -> None:
        """Gathers the stages' metrics and trajectories, writes summary.json and the report, and shows the table."""
        metrics_files = [self.folder / stage / "metrics.jsonl" for stage in ("sft", "stage1", "stage2")]
        (self.folder / "metrics.jsonl").write_text("".join(file.read_text() for file in metrics_files))
        for stage in ("base", "stage1", "stage2"):
            shutil.copytree(self.folder / stage / "trajectories", self.folder / "trajectories", dirs_exist_ok=True)
        stages = {
            "base": json.loads((self.folder / "base" / "evaluation.json").read_text()),
            "sft": _evaluation(self.folder / "stage1", first=True),
            "stage1": _evaluation(self.folder / "stage1"),
            "stage2": _evaluation(self.folder / "stage2"),
        }
        summary = {name: {column: metrics[column] for column in COLUMNS} for name, metrics in stages.items()}
        (self.folder / "summary.json").write_text(json.dumps({**summary, "seconds": seconds, "seed": self.seed}, indent=2))
        report = write_report(self.folder)
        table = Table("stage", *(column.replace("_", " ") for column in COLUMNS), title="judging held-out samples")
        for name, metrics in summary.items():
            table.add_row(name, *(f"{metrics[column]:.3g}" for column in COLUMNS))
        Console().print(table)
        self.console.print(f"{sum(seconds.values()) / 60:.1f} minutes; the exported judge is in {self.folder / 'export'}")
        self.console.print(f"done: open {report}", style="bold")


def _time_left(done: dict[str, float]) -> str:
    """The usual time of what is left, at the pace of what was done."""
    usual = sum(USUAL_SECONDS[name] for name in done)
    pace = sum(done.values()) / usual if usual else 1.0
    left = pace * (sum(USUAL_SECONDS.values()) - usual)
    return f"about {max(1, round(left / 60))} min left"


def _tools_and_template(config: TrainConfig) -> tuple[dict, Template]:
    tools = load_tools(config.tools.files)
    return tools, Template.load(config.model, config.template, {name: tool.schema for name, tool in tools.items()})


def _evaluation(folder: Path, *, first: bool = False) -> dict[str, float]:
    """The first or the last evaluation of a stage."""
    prefix = "evaluation/"
    lines = [line for line in read_lines(folder / "metrics.jsonl") if f"{prefix}accuracy" in line]
    line = lines[0 if first else -1]
    return {name.removeprefix(prefix): value for name, value in line.items() if name.startswith(prefix)}


def _transcript(sample: Sample, judged: session.Session) -> str:
    """The session as text, images by their names."""
    verdict = "right" if is_correct(judged.trajectory, sample) else "wrong"
    lines = [_line(message) for message in (*sample.messages, *judged.messages)]
    return "\n".join([*lines, f"({verdict}: the better answer is {sample.label})"])


def _line(message: Message) -> str:
    text = "".join(part if isinstance(part, str) else f"[image {part.name}] " for part in message.parts)
    return f"{message.role:>10}: {text}"


def main() -> int:
    """Runs the demo."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="run folder; by default runs/demo")
    parser.add_argument("--seed", type=int, default=0, help="of data, initialisation and sampling")
    parser.add_argument("--short", action="store_true", help="a few steps of everything: shows that it runs, learns nothing")
    arguments = parser.parse_args()
    folder = arguments.out or Path("runs/demo-short" if arguments.short else "runs/demo")

    def start() -> str:
        with cluster():
            Demo(folder, arguments.seed, SHORT if arguments.short else FULL).run()
        return ""

    return guarded(start)


if __name__ == "__main__":
    sys.exit(main())
