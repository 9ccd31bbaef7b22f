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

from rich.console import Console

from actors.cluster.reservation import reserve
from actors.learner.ranks import LearnerRanks
from arm_rl.core.config import TrainConfig
from arm_rl.core.config_file import load
from arm_rl.data.samples import Cursor
from arm_rl.experiments.bench import sessions, trl_environment
from arm_rl.experiments.bench.result import Result
from arm_rl.experiments.bench.sessions import CONFIG, SESSIONS, Size
from arm_rl.experiments.bench.trl_process import TrlProcess
from arm_rl.experiments.bench.trl_work import Work
from arm_rl.run.metrics_log import MetricsLog
from arm_rl.training.driver import Driver
from arm_rl.training.groups import GroupRunner, group_runner
from arm_rl.training.inputs import Inputs, read_inputs
from arm_rl.training.learners import learner_group, published_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long, and where."""

    size: Size = SESSIONS
    folder: Path  # of the judges, TRL's environment and the logs
    repeats: int = 5
    steps: int = 6  # of ours, in each repeat and way to run
    other_steps: int = 4  # of TRL's, in each repeat
    seed: int = 0

    def quick(self) -> "Settings":
        """To try it."""
        return replace(self, repeats=2, steps=2, other_steps=1)


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
class SideMeasurement:
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
    """Runs both sides in turn. Wants a Ray cluster.

    Raises:
        UserError: TRL's environment could not be made, or its process ended.
    """
    size = settings.size
    python = trl_environment.make(settings.folder / "environment")
    work = asyncio.run(make_work(settings))
    file = work.write(settings.folder / f"{size.key}.json")
    command = [str(python.absolute()), "-m", "arm_rl.experiments.bench.trl_side", str(file.absolute())]
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


async def make_work(settings: Settings) -> Work:
    """The judge, the data and the limits, for both sides."""
    size, folder = settings.size, settings.folder
    judge = await sessions.judge(size, folder / "judges", settings.seed)
    data = sessions.write_data(folder / f"{size.key}.parquet", size, seed=settings.seed, number=size.num_rows)
    limits = sessions.limits(size)
    return Work(
        model=str(judge),
        data=str(data),
        system_prompt=Path("configs/prompts/digits.txt").read_text().strip(),
        notice=limits.last_turn_notice,
        num_samples=size.num_samples,
        group_size=size.group_size,
        turn_tokens=sessions.TURN_TOKENS,
        response_tokens=limits.max_response_tokens,
        num_threads=os.cpu_count() or 1,
        micro_batch=size.trl_micro_batch,
        seed=settings.seed,
    )


@dataclass(frozen=True, kw_only=True)
class OurSide:
    """Engine, tools, scorers and learners as in a run; a learner for each number of threads."""

    inputs: Inputs
    runner: GroupRunner
    learners: Mapping[int, LearnerRanks]  # by threads
    configs: Mapping[str, TrainConfig]  # by the way's name
    folder: Path

    async def steps(self, way: Way, number: int) -> tuple[float, list[dict[str, float]]]:
        """Does so many steps after the way's warm-up; seconds, and each step's metrics. Nothing runs on when it is done."""
        config, learners = self.configs[way.name], self.learners[way.num_threads]
        shutil.rmtree(
            config.run.folder, ignore_errors=True
        )  # or the groups that the last repeat has finished were read, not run
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
            await driver.collector.idle()
        finally:
            log.close()
            await driver.collector.close()
        return seconds, metrics[way.warm_up :]

    async def _serve_first_version(self, config: TrainConfig, learners: LearnerRanks) -> None:
        """Each way's versions begin at 0 again."""
        rollouts = self.runner.rollouts
        await rollouts.update_weights(
            await asyncio.to_thread(learners.publish, published_folder(config), 0, rollouts.node_ids)
        )


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
            reservation = await stack.enter_async_context(
                reserve(config.run.name, config.placement, config.learner.num_ranks, None)
            )
            starting[way.num_threads] = await stack.enter_async_context(
                learner_group(config, inputs.template, reservation, num_steps=1)
            )
        reservation = await stack.enter_async_context(reserve(first.run.name, first.placement, 0, first.rollout))
        runner = await stack.enter_async_context(group_runner(first, inputs.template, reservation))
        learners = {threads: await task for threads, task in starting.items()}
        yield OurSide(inputs=inputs, runner=runner, learners=learners, configs=configs, folder=settings.folder / "ours")


def _config(settings: Settings, work: Work, way: Way) -> TrainConfig:
    size = settings.size
    limits = sessions.limits(size)
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


async def _in_turn(
    settings: Settings, work: Work, other: TrlProcess
) -> tuple[SideMeasurement, dict[str, SideMeasurement]]:
    """Both sides, repeat by repeat, each alone on the machine."""
    trl, ours = SideMeasurement(), {way.name: SideMeasurement() for way in WAYS}
    await asyncio.to_thread(other.ready)
    async with our_side(settings, work, WAYS) as side:
        await asyncio.to_thread(other.steps, 1)  # the first steps load what they need
        for way in WAYS[:2]:
            await side.steps(way, 1)
        for repeat in range(settings.repeats):
            for way in WAYS:
                seconds, metrics = await side.steps(way, settings.steps)
                rate = settings.steps * work.num_trajectories / seconds
                ours[way.name].add(
                    rate, _means(metrics, {name.removeprefix("time/"): name for name in PHASES}), _means(metrics, MEANS)
                )
                if way == WAYS[0]:
                    done = await asyncio.to_thread(other.steps, settings.other_steps)
                    trl.add(done["trajectories"] / done["seconds"], done["phases"], done["means"])
            logger.info(
                "%s, repeat %d: ours %.1f, TRL %.1f a second",
                work.model,
                repeat + 1,
                ours[WAYS[0].name].rates[-1],
                trl.rates[-1],
            )
    return trl, ours


def _means(metrics: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> dict[str, float]:
    return {short: statistics.fmean(one[name] for one in metrics) for short, name in names.items()}
