"""Phases of the demos: train a small judge through all its stages on one machine.

    data -> base model -> demonstrations, SFT -> difficulty -> GRPO stage 1 -> GRPO stage 2 -> export, server, one judgment -> report

A phase whose product exists is not run again.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from rich.console import Console

from actors.rollout.model_server import ModelServer
from arm_rl.core import session
from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config import ConfigError
from arm_rl.core.config_file import list_override, load
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.core.template import Template
from arm_rl.core.types import Message, Sample
from arm_rl.data.demonstrations import write_demonstrations
from arm_rl.data.samples import read_samples
from arm_rl.demo import dataset
from arm_rl.demo.base import make_base, read_skills
from arm_rl.demo.demos import DemoSize, DemoSpec, demo_settings, write_tool_file
from arm_rl.demo.engines import SharedEngines
from arm_rl.demo.outcome import accuracy_by_pair, describe_marks, describe_outcome, describe_skills, mark_entries
from arm_rl.demo.robustness import ARITHMETICS, Arithmetic
from arm_rl.demo.tables import evaluation_tables, is_shown
from arm_rl.demo.time_left import PhaseTimer, repeat_every
from arm_rl.judge.remote_policy import ServerPolicy
from arm_rl.prepare.difficulty import JUDGED, filter_by_difficulty
from arm_rl.prepare.screening import run_screened_sessions
from arm_rl.report.static_report import write_report
from arm_rl.run.folder import require_same_settings
from arm_rl.run.lock import locked
from arm_rl.run.metrics_log import read_lines
from arm_rl.training.evaluation import evaluate_model
from arm_rl.training.grpo import train_grpo
from arm_rl.training.sft import train_sft
from rewards.judgment import is_correct
from tools import load_tools
from tools.execution.local import LocalTools

ROLLOUTS = 3  # of each sample, to tell how hard it is
REMEDY = "choose another --out, or delete that folder"  # where a folder holds another demo
NOTE_SECONDS = 60.0  # between notes on the time that is left, within a phase
SILENT = ("data", "base_evaluation", "demonstrations", "judge")  # phases that show no progress themselves


class Demo:
    """The phases, in order. Each writes its product into the run folder."""

    def __init__(
        self, spec: DemoSpec, folder: Path, seed: int, size: DemoSize, arithmetic: Arithmetic = ARITHMETICS["usual"]
    ) -> None:
        self.spec, self.folder, self.seed, self.size = spec, folder, seed, size
        self.arithmetic = arithmetic
        self.data, self.base = folder / "data", folder / "base_model"
        self.common = [f"run.root={folder}", f"run.seed={seed}", list_override("tools.files", self.data / "tools.yaml")]
        self.common += arithmetic.overrides
        self.console = Console(highlight=False, soft_wrap=True)
        self._base_share = 0.0  # of pre-training's steps that are done
        self._engines = SharedEngines()

    def open_folder(self) -> None:
        """Make the run folder, or enter it again.

        Raises:
            ConfigError: If the folder holds a demo with another seed, size, configuration or plan.
        """
        file = self.folder / "settings.json"
        if self._seconds_file.exists() and not file.exists():
            raise ConfigError(f"{self.folder} holds a demo of an earlier version, which kept no settings: {REMEDY}")
        require_same_settings(file, demo_settings(self.spec, self.size, self.seed, self.arithmetic), remedy=REMEDY)

    def run(self) -> None:
        """Run the phases that are not done yet, then show the table and write the report."""
        phases: dict[str, Callable[[], object]] = {
            "data": self._make_data,
            "base": self._make_base,
            "base_evaluation": self._evaluate_base,
            "demonstrations": self._demonstrate,
            "sft": self._train_sft,
            "difficulty": self._filter_by_difficulty,
            "stage1": self._train_stage1,
            "stage2": self._train_stage2,
            "judge": self._judge_samples,
        }
        timer = PhaseTimer(self.spec.usual_seconds, self._read_seconds())
        with locked(self.folder, remedy=REMEDY):
            with contextlib.closing(self._engines):
                self._run_phases(phases, timer)
            self._summarize(timer.finished)

    def _run_phases(self, phases: Mapping[str, Callable[[], object]], timer: PhaseTimer) -> None:
        for number, (name, phase) in enumerate(phases.items(), 1):
            title = self.spec.titles[name]
            note = "done before" if name in timer.finished else timer.describe()
            self.console.print(f"[bold]\\[{number}/{len(phases)}] {title}[/] ({note})")
            if name in timer.finished:
                continue
            share_done = self._progress_of(name)
            timer.start(name, share_done() or 0.0)
            with (
                self.console.status(title) if name in SILENT else contextlib.nullcontext(),
                repeat_every(NOTE_SECONDS, partial(_print_time_left, timer, share_done)),
            ):
                phase()
            timer.finish()
            replace_text(self._seconds_file, json.dumps(timer.finished))

    def _make_data(self) -> None:
        for track in self.spec.tracks:
            track.prepare(self.data, self.seed)
        write_tool_file(self.spec, self.data, self.data / "tools.yaml")
        write, size = partial(dataset.write, seed=self.seed, tracks=self.spec.tracks), self.size
        write(self.data / "train.parquet", split="train", num_samples=size.train)
        write(self.data / "grpo.parquet", split="train", num_samples=size.grpo, start=size.train)
        write(self.data / "held_out.parquet", split="held_out", num_samples=size.held_out)
        dataset.write_example(self.folder / "example", seed=self.seed, track=self.spec.tracks[0])

    def _make_base(self) -> None:
        config = self._sft_config()
        schemas = {name: tool.schema for name, tool in load_tools(config.tools.files).items()}
        spec = self.spec
        make_base(
            self.base,
            config.template,
            schemas,
            tracks=spec.tracks,
            plan=dataclasses.replace(spec.plan, num_threads=self.arithmetic.num_threads or spec.plan.num_threads),
            seed=self.seed,
            share=self.size.pretraining,
            on_progress=self._note_base_progress,
        )

    def _note_base_progress(self, share: float) -> None:
        self._base_share = share

    def _evaluate_base(self) -> None:
        config = self._config("run.name=base", f"model.path={self.base}")
        self._engines.run(evaluate_model(config, self._engines.serve(config)))

    def _demonstrate(self) -> None:
        config = self._config(f"model.path={self.base}")
        tools, template = _load_tools_and_template(config)
        teacher = dataclasses.replace(self.spec.teacher, seed=self.seed, tracks=self.spec.tracks)
        samples = read_samples(config.data.train, list(tools))
        with contextlib.closing(LocalTools(tools)) as local:
            sessions = run_screened_sessions(
                samples, lambda sample: teacher.policy(sample, template), local, config.session, template
            )
            write_demonstrations(
                self.data / "demonstrations.parquet", list(itertools.islice(sessions, self.size.demonstrations))
            )

    def _train_sft(self) -> None:
        self._engines.run(train_sft(self._sft_config()))

    def _filter_by_difficulty(self) -> None:
        judge, data = (
            f"model.path={self.folder / 'sft' / 'export'}",
            list_override("data.train", self.data / "grpo.parquet"),
        )
        config = self._config("run.name=sft", judge, data)
        engines = self._engines.serve(config)
        *lines, _ = filter_by_difficulty(config, ROLLOUTS, "keep", engines=engines, run=self._engines.run)
        self.console.print("\n".join(lines))

    def _train_stage1(self) -> None:
        self._train_grpo(self._grpo_config(self.folder / "sft", *self.spec.stage1))

    def _train_stage2(self) -> None:
        self._train_grpo(self._grpo_config(self.folder / "stage1"))

    def _train_grpo(self, config: TrainConfig) -> None:
        self._engines.run(train_grpo(config, self._engines.get(config)))

    def _judge_samples(self) -> None:
        """Serve the exported judge and judge one held-out sample of each track through the session loop of training."""
        export = self.folder / "export"
        shutil.copytree(self.folder / "stage2" / "export", export, dirs_exist_ok=True)
        config = self._config(f"model.path={export}")
        tools, template = _load_tools_and_template(config)
        # the first of each
        samples = {sample.track: sample for sample in reversed(read_samples(config.data.held_out, list(tools)))}
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
                _format_transcript(samples[track.name], self._engines.run(judge(samples[track.name])))
                for track in self.spec.tracks
            ]
        replace_text(self.folder / "transcript.txt", "\n\n".join(texts))
        self.console.print("\n\n".join(texts), markup=False)

    def _config(self, *overrides: str) -> TrainConfig:
        data = [
            list_override("data.train", self.data / "train.parquet"),
            list_override("data.held_out", self.data / "held_out.parquet"),
        ]
        return load(TrainConfig, self.spec.config, [*self.common, *data, *overrides])

    def _grpo_config(self, previous: Path, *overrides: str) -> TrainConfig:
        data = list_override("data.train", self.data / "grpo-filtered.parquet")
        return self._config(data, f"model.path={previous / 'export'}", *overrides, *self.size.overrides)

    def _sft_config(self) -> SftConfig:
        data = list_override("data.train", self.data / "demonstrations.parquet")
        return load(SftConfig, self.spec.sft_config, [*self.common, data, f"model.path={self.base}"])

    def _progress_of(self, name: str) -> Callable[[], float | None]:
        """Return a function that returns the share of a phase that is done (0..1), or None if it is unknown."""
        if name == "base":
            return lambda: self._base_share
        if name == "difficulty":
            return lambda: _count_lines(self.folder / "sft-difficulty" / JUDGED) / self.size.grpo
        if name == "sft":
            sft = self._sft_config()
            num_steps = math.ceil(self.size.demonstrations / sft.batch_size) * sft.num_epochs
        elif name in ("stage1", "stage2"):
            overrides = self.spec.stage1 if name == "stage1" else ()
            num_steps = self._config(*overrides, *self.size.overrides).num_steps or 0
        else:
            return lambda: None
        return lambda: _last_step(self.folder / name / "metrics.jsonl") / num_steps if num_steps else None

    @property
    def _seconds_file(self) -> Path:
        return self.folder / "seconds.json"

    def _read_seconds(self) -> dict[str, float]:
        """Seconds of the phases that are done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return json.loads(self._seconds_file.read_text()) if self._seconds_file.exists() else {}

    def _summarize(self, seconds: dict[str, float]) -> None:
        """Write summary.json and the report out of the stages' metrics and trajectories, and say what they show."""
        metrics_files = [self.folder / stage / "metrics.jsonl" for stage in ("sft", "stage1", "stage2")]
        replace_text(self.folder / "metrics.jsonl", "".join(file.read_text() for file in metrics_files))
        for stage in ("base", "stage1", "stage2"):
            shutil.copytree(self.folder / stage / "trajectories", self.folder / "trajectories", dirs_exist_ok=True)
        stages = {
            "base": json.loads((self.folder / "base" / "evaluation.json").read_text()),
            "sft": _read_evaluation(self.folder / "stage1", first=True),
            "stage1": _read_evaluation(self.folder / "stage1"),
            "stage2": _read_evaluation(self.folder / "stage2"),
        }
        summary = {
            name: {key: value for key, value in metrics.items() if is_shown(key)} for name, metrics in stages.items()
        }
        skills = read_skills(self.base)
        pairs = self._accuracy_by_pair()
        if pairs:
            summary["stage2"]["worst_pair_accuracy"] = min(pairs.values())
        marks = () if self.size == self.spec.short else self.spec.marks
        shown = {
            **summary,
            "base": {**summary["base"], **skills},
            "pairs": pairs,
            "marks": mark_entries(marks, summary),
            "seconds": seconds,
            "seed": self.seed,
        }
        replace_text(self.folder / "summary.json", json.dumps(shown, indent=2))
        report = write_report(self.folder)
        tracks = [track.name for track in self.spec.tracks]
        for table in evaluation_tables(summary, tracks):
            Console().print(table)
        if self.size == self.spec.short:
            self.console.print("A short run takes a few steps of everything and learns nothing: it has no marks.")
        else:
            self.console.print("\n".join(describe_outcome(summary, tracks)), markup=False)
        warnings = () if self.size == self.spec.short else describe_skills(skills.get("skills", {}))
        for line in (*warnings, *describe_marks(marks, summary)):
            self.console.print(line, style="bold red" if line.startswith("WARNING") else "green", markup=False)
        self.console.print(
            f"{sum(seconds.values()) / 60:.1f} minutes; the exported judge is in {self.folder / 'export'}"
        )
        self.console.print(f"done: open {report}", style="bold")

    def _accuracy_by_pair(self) -> dict[str, float]:
        """Return the accuracy after stage 2 for each pair of claims; empty where no trajectories were written."""
        files = sorted((self.folder / "stage2" / "trajectories").glob("stage2-evaluation-*.parquet"))
        return accuracy_by_pair(files[-1]) if files else {}


def _print_time_left(timer: PhaseTimer, share_done: Callable[[], float | None]) -> None:
    """Print a line above whatever progress bar is shown: rich redirects standard output there."""
    sys.stdout.write(f"{timer.describe(share_done())}\n")
    sys.stdout.flush()


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _last_step(metrics_file: Path) -> int:
    """Return the last step of a stage's metrics; 0 if there is none."""
    return max((line["step"] for line in read_lines(metrics_file)), default=0)


def _load_tools_and_template(config: TrainConfig) -> tuple[dict, Template]:
    tools = load_tools(config.tools.files)
    return tools, Template.load(config.model, config.template, {name: tool.schema for name, tool in tools.items()})


def _read_evaluation(folder: Path, *, first: bool = False) -> dict[str, float]:
    """Return the metrics of the first or the last evaluation of a stage."""
    prefix = "evaluation/"
    lines = [line for line in read_lines(folder / "metrics.jsonl") if f"{prefix}accuracy" in line]
    line = lines[0 if first else -1]
    return {name.removeprefix(prefix): value for name, value in line.items() if name.startswith(prefix)}


def _format_transcript(sample: Sample, judged: session.Session) -> str:
    """Return the session as text, with images by their names."""
    verdict = "right" if is_correct(judged.trajectory, sample) else "wrong"
    lines = [_format_message(message) for message in (*sample.messages, *judged.messages)]
    return "\n".join([*lines, f"({verdict}: the better answer is {sample.label})"])


def _format_message(message: Message) -> str:
    text = "".join(part if isinstance(part, str) else f"[image {part.name}] " for part in message.parts)
    return f"{message.role:>10}: {text}"
