"""The main jobs, `make demo` and `make demo-tools`: train a small judge through all its stages on this machine and show what it learned.

    data -> base model -> demonstrations, SFT -> difficulty -> GRPO stage 1 -> GRPO stage 2 -> export, server, one judgment -> report

Started again, it goes on where it was: a phase whose product is there is not done again.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from actors.cluster.connection import cluster
from actors.rollout.model_server import ModelServer
from arm_rl.core import session
from arm_rl.core.config import SftConfig, TrainConfig
from arm_rl.core.config_file import load
from arm_rl.core.template import Template
from arm_rl.core.types import Message, Sample
from arm_rl.data.demonstrations import write_demonstrations
from arm_rl.data.samples import read_samples
from arm_rl.demo import dataset
from arm_rl.demo.base import make_base
from arm_rl.demo.demos import DIGITS, THREE_TRACKS, DemoSize, DemoSpec, write_tool_file
from arm_rl.demo.tables import is_shown, tables
from arm_rl.judge.remote_policy import ServerPolicy
from arm_rl.prepare.difficulty import filter_by_difficulty
from arm_rl.prepare.screening import screened_sessions
from arm_rl.report import write_report
from arm_rl.run.metrics_log import read_lines
from arm_rl.training.evaluation import evaluate_model
from arm_rl.training.grpo import train_grpo
from arm_rl.training.sft import train_sft
from jobs.command_line import FROM_CHECKPOINT, guarded
from rewards.judgment import is_correct
from tools import load_tools
from tools.execution.local import LocalTools

ROLLOUTS = 3  # of each sample, to tell how hard it is
SILENT = ("data", "base_evaluation", "demonstrations", "judge")  # phases that show no progress themselves


class Demo:
    """The phases, in order. Each writes its product into the run folder."""

    def __init__(self, spec: DemoSpec, folder: Path, seed: int, size: DemoSize) -> None:
        self.spec, self.folder, self.seed, self.size = spec, folder, seed, size
        self.data, self.base = folder / "data", folder / "base_model"
        self.common = [f"run.root={folder}", f"run.seed={seed}", f"tools.files=[{self.data / 'tools.yaml'}]"]
        self.console = Console(highlight=False, soft_wrap=True)

    def run(self) -> None:
        """Everything that is not done yet, then the table and the report."""
        phases: dict[str, Callable[[], object]] = {
            "data": self._make_data,
            "base": self._make_base,
            "base_evaluation": self._evaluate_base,
            "demonstrations": self._demonstrate,
            "sft": self._sft,
            "difficulty": self._leave_out,
            "stage1": self._stage1,
            "stage2": self._stage2,
            "judge": self._judge,
        }
        done = self._read_seconds()
        for number, (name, phase) in enumerate(phases.items(), 1):
            title = self.spec.titles[name]
            note = "done before" if name in done else self._time_left(done)
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
        for track in self.spec.tracks:
            track.prepare(self.data, self.seed)
        write_tool_file(self.spec, self.data, self.data / "tools.yaml")
        write, size = partial(dataset.write, seed=self.seed, tracks=self.spec.tracks), self.size
        write(self.data / "train.parquet", split="train", num_samples=size.train)
        write(self.data / "grpo.parquet", split="train", num_samples=size.grpo, start=size.train)
        write(self.data / "held_out.parquet", split="held_out", num_samples=size.held_out)

    def _make_base(self) -> None:
        config = self._sft_config()
        schemas = {name: tool.schema for name, tool in load_tools(config.tools.files).items()}
        spec = self.spec
        make_base(
            self.base,
            config.template,
            schemas,
            tracks=spec.tracks,
            plan=spec.plan,
            seed=self.seed,
            share=self.size.pretraining,
        )

    def _evaluate_base(self) -> None:
        asyncio.run(evaluate_model(self._config("run.name=base", f"model.path={self.base}")))

    def _demonstrate(self) -> None:
        config = self._config(f"model.path={self.base}")
        tools, template = _tools_and_template(config)
        teacher = dataclasses.replace(self.spec.teacher, seed=self.seed, tracks=self.spec.tracks)
        samples = read_samples(config.data.train, list(tools))
        with contextlib.closing(LocalTools(tools)) as local:
            sessions = screened_sessions(
                samples, lambda sample: teacher.policy(sample, template), local, config.session, template
            )
            write_demonstrations(
                self.data / "demonstrations.parquet", list(itertools.islice(sessions, self.size.demonstrations))
            )

    def _sft(self) -> None:
        asyncio.run(train_sft(self._sft_config()))

    def _leave_out(self) -> None:
        judge, data = f"model.path={self.folder / 'sft' / 'export'}", f"data.train=[{self.data / 'grpo.parquet'}]"
        *lines, _ = filter_by_difficulty(self._config("run.name=sft", judge, data), ROLLOUTS, "keep")
        self.console.print("\n".join(lines))

    def _stage1(self) -> None:
        asyncio.run(train_grpo(self._grpo_config(self.folder / "sft", *self.spec.stage1)))

    def _stage2(self) -> None:
        asyncio.run(train_grpo(self._grpo_config(self.folder / "stage1")))

    def _judge(self) -> None:
        """Serves the exported judge and lets it judge one held-out sample of each track, through the session loop of training."""
        export = self.folder / "export"
        shutil.copytree(self.folder / "stage2" / "export", export, dirs_exist_ok=True)
        config = self._config(f"model.path={export}")
        tools, template = _tools_and_template(config)
        samples = {
            sample.track: sample for sample in reversed(read_samples(config.data.held_out, list(tools)))
        }  # the first of each
        with (
            ModelServer(
                export, self.folder / "server.log", use_gpu=False, max_model_len=config.rollout.max_model_len
            ) as server,
            contextlib.closing(LocalTools(tools)) as local,
        ):

            async def judge(sample: Sample) -> session.Session:
                policy = ServerPolicy(server.base_url, "judge", template)
                try:
                    return await session.run(sample, policy, local, config.session, template=template)
                finally:
                    await policy.close()

            texts = [
                _transcript(samples[track.name], asyncio.run(judge(samples[track.name]))) for track in self.spec.tracks
            ]
        (self.folder / "transcript.txt").write_text("\n\n".join(texts))
        self.console.print("\n\n".join(texts), markup=False)

    def _config(self, *overrides: str) -> TrainConfig:
        data = [f"data.train=[{self.data / 'train.parquet'}]", f"data.held_out=[{self.data / 'held_out.parquet'}]"]
        return load(TrainConfig, self.spec.config, [*self.common, *data, *overrides])

    def _grpo_config(self, previous: Path, *overrides: str) -> TrainConfig:
        data = f"data.train=[{self.data / 'grpo-filtered.parquet'}]"
        return self._config(data, f"model.path={previous / 'export'}", *overrides, *self.size.overrides)

    def _sft_config(self) -> SftConfig:
        data = f"data.train=[{self.data / 'demonstrations.parquet'}]"
        return load(SftConfig, self.spec.sft_config, [*self.common, data, f"model.path={self.base}"])

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
        summary = {
            name: {key: value for key, value in metrics.items() if is_shown(key)} for name, metrics in stages.items()
        }
        (self.folder / "summary.json").write_text(
            json.dumps({**summary, "seconds": seconds, "seed": self.seed}, indent=2)
        )
        report = write_report(self.folder)
        for table in tables(summary, [track.name for track in self.spec.tracks]):
            Console().print(table)
        self.console.print(
            f"{sum(seconds.values()) / 60:.1f} minutes; the exported judge is in {self.folder / 'export'}"
        )
        self.console.print(f"done: open {report}", style="bold")

    def _time_left(self, done: dict[str, float]) -> str:
        """The usual time of what is left, at the pace of what was done."""
        seconds = self.spec.usual_seconds
        usual = sum(seconds[name] for name in done)
        pace = sum(done.values()) / usual if usual else 1.0
        left = pace * (sum(seconds.values()) - usual)
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
    parser = argparse.ArgumentParser(
        prog="python -m jobs.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tools", action="store_true", help="three tracks at once, each with a tool of its own to choose"
    )
    parser.add_argument("--out", type=Path, help="run folder; by default runs/demo, or runs/demo-tools")
    parser.add_argument("--seed", type=int, default=0, help="of data, initialisation and sampling")
    parser.add_argument(
        "--short", action="store_true", help="a few steps of everything: shows that it runs, learns nothing"
    )
    arguments = parser.parse_args()
    spec = THREE_TRACKS if arguments.tools else DIGITS
    folder = arguments.out or Path("runs", spec.name + ("-short" if arguments.short else ""))

    def start() -> str:
        with cluster():
            Demo(spec, folder, arguments.seed, spec.short if arguments.short else spec.full).run()
        return ""

    return guarded(start, again=FROM_CHECKPOINT)


if __name__ == "__main__":
    sys.exit(main())
