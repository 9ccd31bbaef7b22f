"""Whole GRPO steps against TRL's GRPOTrainer: the same judge, data, limits, loss and cores, both sides in turn.

    a taught judge and its data -> TRL's process, asleep but in its turn -> engine and learners -> rates, repeat by repeat

`trl_side` is TRL's side, `trl_environment` makes the environment that it runs in.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.cluster.reservation import reserve
from actors.learner.ranks import LearnerRanks
from arm_rl.core.config_file import list_override, load
from arm_rl.core.stage_config import TrainConfig
from arm_rl.data.samples import Cursor
from arm_rl.experiments.bench import sessions, trl_environment
from arm_rl.experiments.bench.benchmark import Measurement, SpeedBenchmark, Workspace, medians
from arm_rl.experiments.bench.sessions import CONFIG, LARGE_IMAGES, SMALL_IMAGES, StepShape
from arm_rl.experiments.bench.trl_process import TrlProcess
from arm_rl.experiments.bench.trl_task import TrlTask
from arm_rl.training.group_runner import GroupRunner
from arm_rl.training.inputs import Inputs, read_inputs
from arm_rl.training.silent_driver import silent_driver
from arm_rl.training.startup import group_runner, learner_ranks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrlSettings:
    """Shape of a step, and numbers of steps and repeats."""

    shape: StepShape
    repeats: int = 5
    steps: int = 6  # of ours, in each repeat and pipeline mode
    other_steps: int = 4  # of TRL's, in each repeat
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PipelineMode:
    """How our side runs its steps."""

    name: str
    max_staleness: int
    drop_flat: bool
    num_threads: int  # of the learner

    @property
    def warm_up(self) -> int:
        """Steps that are not counted: ahead of the learners, the first ones find groups that were finished before."""
        return 1 + 2 * self.max_staleness


# The first one is the benchmark's number. In turns, the learner has both cores; at the same time, one beside the engine's.
MODES = (
    PipelineMode(name="asynchronous", max_staleness=1, drop_flat=False, num_threads=1),
    PipelineMode(name="synchronous", max_staleness=0, drop_flat=False, num_threads=2),
    PipelineMode(name="asynchronous, flat groups dropped", max_staleness=1, drop_flat=True, num_threads=1),
    PipelineMode(name="synchronous, flat groups dropped", max_staleness=0, drop_flat=True, num_threads=2),
)


@dataclass(slots=True)
class SideMeasurement:
    """Values of one side over the repeats."""

    rates: list[float] = field(default_factory=list)  # trajectories a second
    phases: list[dict[str, float]] = field(default_factory=list)  # seconds a step
    means: dict[str, float] = field(default_factory=dict)  # of the last repeat: tokens, turns and calls of a trajectory

    def add(self, rate: float, phases: dict[str, float], means: dict[str, float]) -> None:
        """Append the values of one repeat."""
        self.rates.append(rate)
        self.phases.append(phases)
        self.means = means

    def summary(self) -> dict[str, Any]:
        """Return the values for the details of a result."""
        return {
            "rates": self.rates,
            "median": statistics.median(self.rates),
            "seconds_a_step": medians(self.phases),
            "means": self.means,
        }


def measure(settings: TrlSettings, workspace: Workspace) -> Measurement:
    """Measure trajectories a second of both sides in turn.

    Raises:
        UserError: If TRL's environment cannot be made, or its process ends.
    """
    name, folder = settings.shape.name, workspace.kept / "trl"
    python = trl_environment.make(folder / "environment")
    task = make_task(settings, workspace)
    file = task.write(folder / f"{name}.json")
    command = [str(python.absolute()), "-m", "arm_rl.experiments.bench.trl_side", str(file.absolute())]
    with TrlProcess(command, folder / f"{name}.log", task.num_threads) as other:
        trl, ours = asyncio.run(_in_turn(settings, task, other, folder))
    return Measurement(
        ours=ours[MODES[0].name].rates,
        other=trl.rates,
        notes=[
            "asynchronous steps are off-policy by at most one update; the synchronous rate is in the details",
            "TRL generates with transformers, ours with vLLM: TRL 1.16 takes vLLM on GPUs only",
            "a model of 0.7 million parameters makes overheads dominate on both sides",
            "TRL gets decoded images at the size that the judge sees, and a tool without executor: the fastest way to give it them",
            "ours forbids a call in the last turn; TRL only stops after it",
            f"learning rate 0, {os.cpu_count()} cores, TRL with {task.num_threads} threads; "
            f"flat groups dropped: half of the groups have equal rewards by the judge's making",
        ],
        details={"trl": trl.summary(), "versions": other.started} | {name: one.summary() for name, one in ours.items()},
    )


def _benchmark(what: str, *, goal: float, settings: TrlSettings) -> SpeedBenchmark:
    return SpeedBenchmark(
        key=settings.shape.name,
        what=what,
        unit="trajectories/s",
        goal=goal,
        settings=settings,
        quick=replace(settings, repeats=2, steps=2, other_steps=1),
        measure=measure,
    )


ON_SMALL_IMAGES = _benchmark(
    "trajectories a second of whole GRPO steps on the demo's sessions, against TRL's GRPOTrainer",
    goal=2.0,
    settings=TrlSettings(shape=SMALL_IMAGES),
)
ON_LARGE_IMAGES = _benchmark(
    "the same on groups of 16 that share a prompt image of 1,024 tokens",
    goal=5.0,
    settings=TrlSettings(shape=LARGE_IMAGES, steps=3, other_steps=1),
)


def make_task(settings: TrlSettings, workspace: Workspace) -> TrlTask:
    """Make the judge and the data for both sides, and return them with the limits."""
    shape = settings.shape
    judge = sessions.judge(workspace, shape, settings.seed)
    path = workspace.kept / "trl" / f"{shape.name}.parquet"
    data = sessions.write_data(path, shape, seed=settings.seed, number=shape.num_rows)
    limits = sessions.limits(shape)
    return TrlTask(
        model=str(judge),
        data=str(data),
        system_prompt=Path("configs/prompts/digits.txt").read_text().strip(),
        notice=limits.last_turn_notice,
        num_samples=shape.num_samples,
        group_size=shape.group_size,
        turn_tokens=sessions.TURN_TOKENS,
        response_tokens=limits.max_response_tokens,
        num_threads=os.cpu_count() or 1,
        micro_batch=shape.trl_micro_batch,
        seed=settings.seed,
    )


@dataclass(frozen=True, kw_only=True)
class OurSide:
    """Engine, tools, scorers and learners as in a run; a learner for each number of threads."""

    inputs: Inputs
    runner: GroupRunner
    learners: Mapping[int, LearnerRanks]  # by threads
    configs: Mapping[str, TrainConfig]  # by the mode's name

    async def steps(self, mode: PipelineMode, number: int) -> tuple[float, list[dict[str, float]]]:
        """Run steps after the mode's warm-up, and wait until no group runs.

        Returns:
            Seconds of all counted steps together, and the metrics of each.
        """
        config = self.configs[mode.name]
        # Groups that the last repeat has finished would be read from the run folder instead of run.
        shutil.rmtree(config.run.folder, ignore_errors=True)
        metrics = []
        started = 0.0
        async with silent_driver(
            config,
            runner=self.runner,
            learners=self.learners[mode.num_threads],
            cursor=Cursor(self.inputs.samples, config.run.seed),
            image_pad_id=self.inputs.template.image_pad_id,
            num_steps=mode.warm_up + number,
        ) as driver:
            await driver.resume(serves_other=True)  # the engine goes back to version 0
            for step in range(mode.warm_up + number):
                if step == mode.warm_up:
                    started = time.perf_counter()
                metrics.append(await driver.step())
                driver.steps_done += 1
            seconds = time.perf_counter() - started
            await driver.collector.idle()
        return seconds, metrics[mode.warm_up :]


@contextlib.asynccontextmanager
async def our_side(settings: TrlSettings, task: TrlTask, folder: Path) -> AsyncIterator[OurSide]:
    """Start the actors of our side and end them whatever happens."""
    configs = {mode.name: _config(settings, task, mode, folder) for mode in MODES}
    first = configs[MODES[0].name]
    inputs = read_inputs(first)
    async with contextlib.AsyncExitStack() as stack:
        starting = {}
        for mode in MODES:
            if mode.num_threads in starting:
                continue
            config = configs[mode.name]
            reservation = await stack.enter_async_context(
                reserve(config.run.name, config.placement, config.learner.num_ranks, None)
            )
            starting[mode.num_threads] = await stack.enter_async_context(
                learner_ranks(config, inputs.template, reservation, num_steps=1)
            )
        reservation = await stack.enter_async_context(reserve(first.run.name, first.placement, 0, first.rollout))
        runner = await stack.enter_async_context(group_runner(first, inputs.template, reservation))
        learners = {threads: await task for threads, task in starting.items()}
        yield OurSide(inputs=inputs, runner=runner, learners=learners, configs=configs)


def _config(settings: TrlSettings, task: TrlTask, mode: PipelineMode, folder: Path) -> TrainConfig:
    shape = settings.shape
    limits = sessions.limits(shape)
    flags = {True: "true", False: "false"}
    return load(
        TrainConfig,
        CONFIG,
        [
            f"run.name={shape.name}-{mode.num_threads}",  # a learner's folder of published weights
            f"run.root={folder}",
            f"run.seed={settings.seed}",
            f"model.path={task.model}",
            list_override("data.train", task.data),
            "data.held_out=[]",
            f"session.max_turns={limits.max_turns}",
            f"session.max_prompt_tokens={limits.max_prompt_tokens}",
            f"session.max_response_tokens={limits.max_response_tokens}",
            f"rollout.max_model_len={limits.max_prompt_tokens + limits.max_response_tokens}",
            f"rollout.max_num_seqs={task.num_trajectories}",
            "reward.name=accuracy",
            f"algorithm.samples_per_step={shape.num_samples}",
            f"algorithm.group_size={shape.group_size}",
            f"algorithm.max_staleness={mode.max_staleness}",
            f"algorithm.drop_flat_groups={flags[mode.drop_flat]}",
            f"learner.micro_batch_tokens={shape.micro_batch_tokens}",
            f"learner.num_threads={mode.num_threads}",
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


async def _in_turn(
    settings: TrlSettings, task: TrlTask, other: TrlProcess, folder: Path
) -> tuple[SideMeasurement, dict[str, SideMeasurement]]:
    """Measure both sides repeat by repeat, each alone on the machine."""
    trl, ours = SideMeasurement(), {mode.name: SideMeasurement() for mode in MODES}
    await asyncio.to_thread(other.ready)
    async with our_side(settings, task, folder) as side:
        await asyncio.to_thread(other.steps, 1)  # the first steps load what they need
        for mode in MODES[:2]:
            await side.steps(mode, 1)
        for repeat in range(settings.repeats):
            for mode in MODES:
                seconds, metrics = await side.steps(mode, settings.steps)
                rate = settings.steps * task.num_trajectories / seconds
                ours[mode.name].add(
                    rate, _means(metrics, {name.removeprefix("time/"): name for name in PHASES}), _means(metrics, MEANS)
                )
                if mode == MODES[0]:
                    done = await asyncio.to_thread(other.steps, settings.other_steps)
                    trl.add(done["trajectories"] / done["seconds"], done["phases"], done["means"])
            logger.info(
                "%s, repeat %d: ours %.1f, TRL %.1f a second",
                task.model,
                repeat + 1,
                ours[MODES[0].name].rates[-1],
                trl.rates[-1],
            )
    return trl, ours


def _means(metrics: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> dict[str, float]:
    return {short: statistics.fmean(one[name] for one in metrics) for short, name in names.items()}
