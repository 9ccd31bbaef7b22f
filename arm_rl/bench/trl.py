"""Whole GRPO steps against TRL's GRPOTrainer: the same judge, data, limits, loss and cores, both sides in turn.

    a taught judge and its data -> TRL's process, asleep but in its turn -> engine and learners -> rates, repeat by repeat

`trl_side` is TRL's side, `trl_environment` makes the environment that it runs in.
"""

import asyncio
import contextlib
import io
import json
import logging
import os
import random
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from actors.cluster import cluster
from actors.learner_group import LearnerGroup
from actors.placement import Reservation, plan
from arm_rl.bench import trl_environment
from arm_rl.bench.result import Result
from arm_rl.bench.trl_work import TOOL, Work, copy_judge, enlarge_images
from arm_rl.core import session
from arm_rl.core.config import SessionConfig, SftConfig, TrainConfig
from arm_rl.core.config_file import load
from arm_rl.core.errors import UserError
from arm_rl.core.session import Completion, Policy, PolicyRequest
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from arm_rl.data import Cursor, read_samples
from arm_rl.demonstrations import write_demonstrations
from arm_rl.digits import dataset, model, scenes
from arm_rl.driver import Driver
from arm_rl.groups import GroupRunner, group_runner
from arm_rl.inputs import Inputs, read_inputs, read_template
from arm_rl.learners import learner_group, published_folder
from arm_rl.metrics_log import MetricsLog
from arm_rl.sft import train_sft
from tools import load_tools
from tools.local import LocalTools

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
CONFIG, SFT_CONFIG = "configs/demo.yaml", "configs/demo_sft.yaml"
TURN_TOKENS = 32  # a call has 15, an answer 8
SURE_OF = tuple(scenes.COLORS)[:2]  # questions that the judge always answers alike: half of the groups are flat
SLACK_SECONDS = 60.0  # for what runs ahead to end


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a benchmark's steps are made of."""

    key: str
    what: str
    goal: float
    num_samples: int = 16  # of a step
    group_size: int = 8
    image_side: int | None = None  # pixels of the prompts' images; None: as the demo has them, shown with 16 tokens
    prompt_tokens: int = 64  # at most
    observation_tokens: int = 32  # at most
    trl_micro_batch: int = 128  # trajectories
    micro_batch_tokens: int = 16384
    num_rows: int = 160  # of the data


SESSIONS = Size(key="vs_trl", what="trajectories a second of whole GRPO steps on the demo's sessions, against TRL's GRPOTrainer", goal=2.0)
IMAGES = Size(
    key="vs_trl_images",
    what="the same on groups of 16 that share a prompt image of 1,024 tokens",
    goal=5.0,
    num_samples=2,
    group_size=16,
    image_side=512,
    prompt_tokens=1088,
    observation_tokens=80,
    trl_micro_batch=32,
    num_rows=16,
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long, and where."""

    size: Size = SESSIONS
    folder: Path = Path("runs/bench/trl")  # of the judges, TRL's environment and the logs
    repeats: int = 5
    steps: int = 6  # of ours, in each repeat and way to run
    other_steps: int = 4  # of TRL's, in each repeat
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to run our side."""

    name: str
    max_staleness: int
    drop_flat: bool
    num_threads: int  # of the learner

    @property
    def warm_up(self) -> int:
        """Steps that are not counted: ahead of the learners, the first ones find groups that were finished before."""
        return 1 + 2 * self.max_staleness


# The first one is the benchmark's number. In turns, the learner has both cores; at the same time, one beside the engine's.
WAYS = (
    Way(name="asynchronous", max_staleness=1, drop_flat=False, num_threads=1),
    Way(name="synchronous", max_staleness=0, drop_flat=False, num_threads=2),
    Way(name="asynchronous, flat groups dropped", max_staleness=1, drop_flat=True, num_threads=1),
    Way(name="synchronous, flat groups dropped", max_staleness=0, drop_flat=True, num_threads=2),
)


@dataclass(slots=True)
class Measured:
    """Of one side, over the repeats."""

    rates: list[float] = field(default_factory=list)  # trajectories a second
    phases: list[dict[str, float]] = field(default_factory=list)  # seconds a step
    means: dict[str, float] = field(default_factory=dict)  # of the last repeat: tokens, turns and calls of a trajectory

    def add(self, rate: float, phases: dict[str, float], means: dict[str, float]) -> None:
        """A repeat."""
        self.rates.append(rate)
        self.phases.append(phases)
        self.means = means

    def summary(self) -> dict[str, Any]:
        """For the details."""
        names = self.phases[0] if self.phases else {}
        return {
            "rates": self.rates,
            "median": statistics.median(self.rates),
            "seconds_a_step": {name: statistics.median(phases[name] for phases in self.phases) for name in names},
            "means": self.means,
        }


def measure(settings: Settings) -> Result:
    """Runs both sides in turn.

    Raises:
        UserError: TRL's environment could not be made, or its process ended.
    """
    size = settings.size
    python = trl_environment.make(settings.folder / "environment")
    with cluster():
        work = asyncio.run(make_work(settings))
        file = work.write(settings.folder / f"{size.key}.json")
        command = [str(python.absolute()), "-m", "arm_rl.bench.trl_side", str(file.absolute())]
        with TrlProcess(command, settings.folder / f"{size.key}.log", work.num_threads) as other:
            trl, ours = asyncio.run(_in_turn(settings, work, other))
    first = ours[WAYS[0].name]
    return Result.of(
        key=size.key,
        what=size.what,
        goal=size.goal,
        unit="trajectories/s",
        ours=first.rates,
        other=trl.rates,
        notes=[
            "asynchronous steps are off-policy by at most one update; the synchronous rate is in the details",
            "TRL generates with transformers, ours with vLLM: TRL 1.16 takes vLLM on GPUs only",
            "a model of 0.7 million parameters makes overheads dominate on both sides",
            "TRL gets decoded images at the size that the judge sees, and a tool without executor: the fastest way to give it them",
            "ours forbids a call in the last turn; TRL only stops after it",
            f"learning rate 0, {os.cpu_count()} cores, TRL with {work.num_threads} threads; "
            f"flat groups dropped: half of the groups have equal rewards by the judge's making",
        ],
        details={"trl": trl.summary(), "versions": other.started} | {name: one.summary() for name, one in ours.items()},
    )


# --- the work ------------------------------------------------------------------------------------------------------------------------


async def make_work(settings: Settings) -> Work:
    """A judge that calls its tool in the first turn and answers in the second, the data, and the limits. Made once."""
    size, folder = settings.size, settings.folder
    observation = size.observation_tokens
    judge = await _judge(settings)
    data = folder / f"{size.key}.parquet"
    _write_data(data, size, seed=settings.seed, number=size.num_rows)
    return Work(
        model=str(judge),
        data=str(data),
        system_prompt=Path("configs/prompts/digits.txt").read_text().strip(),
        notice=load(TrainConfig, CONFIG).session.last_turn_notice,
        num_samples=size.num_samples,
        group_size=size.group_size,
        turn_tokens=TURN_TOKENS,
        response_tokens=2 * TURN_TOKENS + observation,
        num_threads=os.cpu_count() or 1,
        micro_batch=size.trl_micro_batch,
        seed=settings.seed,
    )


def _write_data(path: Path, size: Size, *, seed: int, number: int) -> Path:
    dataset.write(path, seed=seed, split="train", num_samples=number)
    if size.image_side is not None:
        enlarge_images(path, size.image_side)
    return path


async def _judge(settings: Settings) -> Path:
    """Taught from fresh weights on the demo's sessions; where images are large, taught on these as well."""
    small = await _taught(settings, SESSIONS, lambda folder: model.build(folder, settings.seed), number=768, epochs=5, batch=32)
    size = settings.size
    if size.image_side is None:
        return small
    view = (model.VIEW**2, size.image_side**2)
    return await _taught(settings, size, lambda folder: copy_judge(small, folder, view=view), number=24, epochs=10, batch=8)


async def _taught(settings: Settings, size: Size, make: Any, *, number: int, epochs: int, batch: int) -> Path:
    """The export of a short cold start on sessions that all zoom once: what both sides sample then has the same length."""
    root = settings.folder / "judges" / size.key
    export = root / "sft" / "export"
    if (export / "config.json").is_file():
        return export
    logger.info("teaching the judge of %s to call its tool (about a minute, once)", size.key)
    base = make(root / "base")
    data = _write_data(root / "lessons.parquet", size, seed=settings.seed + 1, number=number)
    config = load(
        SftConfig,
        SFT_CONFIG,
        [
            f"run.root={root}",
            f"run.seed={settings.seed}",
            f"model.path={base}",
            f"data.train=[{root / 'demonstrations.parquet'}]",
            f"num_epochs={epochs}",
            f"batch_size={batch}",
            f"learner.micro_batch_tokens={size.micro_batch_tokens}",
            "learner.learning_rate=1.0e-3",
            "learner.schedule=cosine",
            "learner.freeze_vision=true",
            "learner.freeze_projector=true",
            "metrics.wandb=disabled",
        ],
    )
    template = read_template(config)
    tools = LocalTools(load_tools(config.tools.files))
    limits = _limits(size, notice=load(TrainConfig, CONFIG).session.last_turn_notice)
    rng = random.Random(settings.seed)
    samples = read_samples([str(data)], [TOOL])
    sessions = [(one, await session.run(one, _says(_turns(one, rng), template), tools, limits, template=template)) for one in samples]
    write_demonstrations(Path(config.data.train[0]), sessions)
    with contextlib.redirect_stdout(io.StringIO()):  # a line a step is no news here
        await train_sft(config)
    return export


def _turns(sample: Sample, rng: random.Random) -> tuple[str, str]:
    """A zoom into any cell; then an answer at random, but for the questions about half of the colours."""
    box = list(scenes.cell_box(rng.randrange(scenes.GRID), rng.randrange(scenes.GRID)))
    call = json.dumps({"name": TOOL, "arguments": {"image": "original_image", "bbox_2d": box}})
    sure = any(color in sample.messages[-1].text for color in SURE_OF)
    answer = 1 if sure else rng.randint(1, 2)
    return (
        f"<think>look closer</think><tool_call>{call}</tool_call>",
        f"<think>unclear</think><answer>Overall Judgment: Answer {answer} is better.</answer>",
    )


def _says(turns: Sequence[str], template: Template) -> Policy:
    """A policy that says these turns, the last one with its end token."""

    async def speak(request: PolicyRequest) -> Completion:
        number = sum(message.role == "assistant" for message in request.messages)
        ids = template.turn_ids(turns[number], ended=number == len(turns) - 1)
        return Completion(token_ids=ids, logprobs=(), text=turns[number], finish_reason="stop")

    return speak


def _limits(size: Size, *, notice: str) -> SessionConfig:
    return SessionConfig(
        max_turns=2,
        max_prompt_tokens=size.prompt_tokens,
        max_response_tokens=2 * TURN_TOKENS + size.observation_tokens,
        last_turn_notice=notice,
    )


# --- TRL's side ----------------------------------------------------------------------------------------------------------------------


class TrlProcess:
    """`trl_side` in TRL's environment; a context manager. It starts with it, and does steps when it is told to."""

    def __init__(self, command: Sequence[str], log: Path, num_threads: int) -> None:
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                cwd=ROOT,
                env=_trl_environment(os.environ, num_threads),
            )
        self.started: dict[str, Any] = {}

    def ready(self) -> None:
        """Waits until the trainer is there."""
        self.started = self._answer()

    def steps(self, number: int) -> dict[str, Any]:
        """Does so many steps: their seconds, their trajectories, the phases and the means that `trl_side` tells."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            end = "".join(f"    {one}\n" for one in self._log.read_text().splitlines()[-12:])
            raise UserError(f"TRL's process ended; the end of {self._log}:\n{end}")
        return json.loads(line)

    def __enter__(self) -> "TrlProcess":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()


def _trl_environment(environment: Mapping[str, str], num_threads: int) -> dict[str, str]:
    kept = {name: value for name, value in environment.items() if not name.startswith(("RAY_", "VLLM_", "DS_", "OMP_"))}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(num_threads),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


# --- our side ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OurSide:
    """Engine, tools, scorers and learners as in a run; a learner for each number of threads."""

    inputs: Inputs
    runner: GroupRunner
    learners: Mapping[int, LearnerGroup]  # by threads
    configs: Mapping[str, TrainConfig]  # by the way's name
    folder: Path

    async def steps(self, way: Way, number: int) -> tuple[float, list[dict[str, float]]]:
        """Does so many steps after the way's warm-up; seconds, and each step's metrics. Nothing runs on when it is done."""
        config, learners = self.configs[way.name], self.learners[way.num_threads]
        await self._serve_first_version(config, learners)
        log = MetricsLog(self.folder, config.metrics, config, number, console=Console(quiet=True))
        driver = Driver(
            config,
            runner=self.runner,
            learners=learners,
            cursor=Cursor(self.inputs.samples, config.run.seed),
            held_out=(),
            image_pad_id=self.inputs.template.image_pad_id,
            num_steps=way.warm_up + number,
            log=log,
        )
        metrics = []
        started = 0.0
        try:
            for step in range(way.warm_up + number):
                if step == way.warm_up:
                    started = time.perf_counter()
                metrics.append(await driver.step())
                driver.steps_done += 1
            seconds = time.perf_counter() - started
            await _quiet()
        finally:
            log.close()
            await driver.collector.close()
        return seconds, metrics[way.warm_up :]

    async def _serve_first_version(self, config: TrainConfig, learners: LearnerGroup) -> None:
        """Each way's versions begin at 0 again."""
        rollouts = self.runner.rollouts
        await rollouts.update_weights(await asyncio.to_thread(learners.publish, published_folder(config), 0, rollouts.node_ids))


async def _quiet() -> None:
    """Waits for the groups that ran ahead: the only tasks of this event loop beside the caller's."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=SLACK_SECONDS)


@contextlib.asynccontextmanager
async def our_side(settings: Settings, work: Work, ways: Sequence[Way]) -> AsyncIterator[OurSide]:
    """Starts the actors; ends them whatever happens."""
    configs = {way.name: _config(settings, work, way) for way in ways}
    first = configs[ways[0].name]
    inputs = read_inputs(first)
    async with contextlib.AsyncExitStack() as stack:
        starting = {}
        for way in ways:
            if way.num_threads in starting:
                continue
            config = configs[way.name]
            reservation = Reservation(plan(config.placement, config.learner.num_ranks, None))
            stack.callback(reservation.release)
            starting[way.num_threads] = await stack.enter_async_context(learner_group(config, inputs.template, reservation, num_steps=1))
        reservation = Reservation(plan(first.placement, 0, first.rollout))
        stack.callback(reservation.release)
        runner = await stack.enter_async_context(group_runner(first, inputs.template, reservation))
        learners = {threads: await task for threads, task in starting.items()}
        yield OurSide(inputs=inputs, runner=runner, learners=learners, configs=configs, folder=settings.folder / "ours")


def _config(settings: Settings, work: Work, way: Way) -> TrainConfig:
    size = settings.size
    limits = _limits(size, notice=work.notice)
    flags = {True: "true", False: "false"}
    return load(
        TrainConfig,
        CONFIG,
        [
            f"run.name={size.key}-{way.num_threads}",  # a learner's folder of published weights
            f"run.root={settings.folder}",
            f"run.seed={settings.seed}",
            f"model.path={work.model}",
            f"data.train=[{work.data}]",
            "data.held_out=[]",
            f"session.max_turns={limits.max_turns}",
            f"session.max_prompt_tokens={limits.max_prompt_tokens}",
            f"session.max_response_tokens={limits.max_response_tokens}",
            f"rollout.max_model_len={limits.max_prompt_tokens + limits.max_response_tokens}",
            f"rollout.max_num_seqs={work.num_trajectories}",
            "reward.name=accuracy",
            f"algorithm.samples_per_step={size.num_samples}",
            f"algorithm.group_size={size.group_size}",
            f"algorithm.max_staleness={way.max_staleness}",
            f"algorithm.drop_flat_groups={flags[way.drop_flat]}",
            f"learner.micro_batch_tokens={size.micro_batch_tokens}",
            f"learner.num_threads={way.num_threads}",
            "learner.learning_rate=0.0",
            "learner.schedule=constant",
            "metrics.wandb=disabled",
            "metrics.trajectories_every=0",
        ],
    )


MEANS = {
    "prompt_tokens": "rollout/prompt_tokens",
    "sampled_tokens": "rollout/response_tokens",
    "observation_tokens": "rollout/observation_tokens",
    "turns": "rollout/turns",
    "tool_images": "tools/success_rate",
    "groups_kept": "rollout/groups_kept",
    "staleness": "rollout/staleness",
}
PHASES = ("time/rollout", "time/learner", "time/sync", "time/step")


async def _in_turn(settings: Settings, work: Work, other: TrlProcess) -> tuple[Measured, dict[str, Measured]]:
    """Both sides, repeat by repeat, each alone on the machine."""
    trl, ours = Measured(), {way.name: Measured() for way in WAYS}
    await asyncio.to_thread(other.ready)
    async with our_side(settings, work, WAYS) as side:
        await asyncio.to_thread(other.steps, 1)  # the first steps load what they need
        for way in WAYS[:2]:
            await side.steps(way, 1)
        for repeat in range(settings.repeats):
            for way in WAYS:
                seconds, metrics = await side.steps(way, settings.steps)
                rate = settings.steps * work.num_trajectories / seconds
                ours[way.name].add(rate, _means(metrics, {name.removeprefix("time/"): name for name in PHASES}), _means(metrics, MEANS))
                if way == WAYS[0]:
                    done = await asyncio.to_thread(other.steps, settings.other_steps)
                    trl.add(done["trajectories"] / done["seconds"], done["phases"], done["means"])
            logger.info("%s, repeat %d: ours %.1f, TRL %.1f a second", work.model, repeat + 1, ours[WAYS[0].name].rates[-1], trl.rates[-1])
    return trl, ours


def _means(metrics: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> dict[str, float]:
    return {short: statistics.fmean(one[name] for one in metrics) for short, name in names.items()}
