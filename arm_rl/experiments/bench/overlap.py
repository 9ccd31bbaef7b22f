"""How well rollouts and learning go on at the same time: asynchronous steps, against the slower of the two when it runs alone.

    steps:    the driver's own, with `algorithm.max_staleness` above 0, and weights synced after each
    rollouts: as many groups in flight, nothing else running
    learner:  the batches of a step, one after the other, nothing else running

All three run on the same actors, in turn. The engine has one thread and the learner one; the learning rate is 0.
"""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from actors.cluster.reservation import reserve
from arm_rl.core.config import MetricsConfig, TrainConfig
from arm_rl.core.config_file import load
from arm_rl.core.types import Sample
from arm_rl.data.samples import Cursor
from arm_rl.demo import dataset
from arm_rl.experiments.bench import usage
from arm_rl.experiments.bench.result import Result
from arm_rl.run.metrics_log import MetricsLog
from arm_rl.training.collector import Collector
from arm_rl.training.driver import Driver
from arm_rl.training.groups import Group, group_runner
from arm_rl.training.inputs import read_inputs
from arm_rl.training.learners import learner_group

CONFIG = "configs/demo.yaml"
GOAL = 0.8
NUM_SAMPLES = 1024  # so that no prompt comes again soon


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured, and with which model."""

    model: str  # folder of a judge that calls its tool
    max_staleness: int = 1
    steps: int = 8  # of one measurement
    repeats: int = 5
    overrides: tuple[str, ...] = ()  # of the demo's configuration

    def quick(self) -> "Settings":
        """To try it."""
        return replace(self, steps=3, repeats=2)


def measure(settings: Settings) -> Result:
    """Steps a second, together and apart. Wants a Ray cluster."""
    with TemporaryDirectory() as folder:
        data = dataset.write(Path(folder) / "train.parquet", seed=0, split="train", num_samples=NUM_SAMPLES)
        config = load(
            TrainConfig,
            CONFIG,
            [
                "run.name=overlap",
                f"run.root={folder}",
                f"model.path={settings.model}",
                f"data.train=[{data}]",
                "data.held_out=[]",
                f"algorithm.max_staleness={settings.max_staleness}",
                "algorithm.drop_flat_groups=false",  # every step trains as many trajectories
                "learner.num_threads=1",
                "learner.learning_rate=0",
                "learner.schedule=constant",
                "metrics.wandb=disabled",
                "metrics.trajectories_every=0",
                *settings.overrides,
            ],
        )
        return asyncio.run(_measure(config, settings))


async def _measure(config: TrainConfig, settings: Settings) -> Result:
    steps = settings.steps
    together: list[float] = []  # seconds a step
    rollouts, learner, syncs, waits, too_old = list[float](), list[float](), list[float](), list[float](), 0.0
    used: dict[str, dict[str, float]] = {}
    async with _driver(config, settings) as driver:
        groups = await _rollouts(driver, 1)
        groups = groups[: config.algorithm.samples_per_step]
        await driver._learn(groups)
        for _ in range(settings.repeats):
            async with _asynchronous(driver):
                before, started = usage.cpu_seconds(), time.perf_counter()
                for _ in range(steps):
                    metrics = await _step(driver)
                    syncs.append(metrics["time/sync"])
                    waits.append(metrics["time/rollout"])
                    too_old += metrics["rollout/groups_too_old"]
                together.append((time.perf_counter() - started) / steps)
                used["together"] = _each(usage.since(before), steps)
            before = usage.cpu_seconds()
            rollouts.append(await _timed_rollouts(driver, steps))
            used["rollouts"] = _each(usage.since(before), steps + 1 + config.algorithm.max_staleness)
            before, started = usage.cpu_seconds(), time.perf_counter()
            for _ in range(steps):
                await driver._learn(groups)
            learner.append((time.perf_counter() - started) / steps)
            used["learner"] = _each(usage.since(before), steps)
    return Result.of(
        key="overlap",
        what="asynchronous steps, over 1 / max(rollouts alone, learner alone)",
        goal=GOAL,
        unit="steps/s",
        ours=[1 / seconds for seconds in together],
        other=[1 / max(pair) for pair in zip(rollouts, learner, strict=True)],
        notes=[
            f"{config.algorithm.samples_per_step} groups of {config.algorithm.group_size}, all trained, max_staleness "
            f"{config.algorithm.max_staleness}; one thread each for engine and learner, beside them the rollout actor, tools and driver",
            "asynchronous steps sync the weights; rollouts alone and the learner alone do not",
        ],
        details={
            "seconds": {"together": together, "rollouts": rollouts, "learner": learner},
            "sync_seconds": sum(syncs) / len(syncs),
            "wait_seconds": sum(waits) / len(waits),  # for groups, a step
            "groups_too_old": too_old,
            "cpu_seconds": used,  # a step, by process
        },
    )


async def _step(driver: Driver) -> dict[str, float]:
    metrics = await driver.step()
    driver.steps_done += 1
    driver.log.log(driver.steps_done, metrics)
    return metrics


@asynccontextmanager
async def _asynchronous(driver: Driver) -> AsyncIterator[None]:
    """The pipeline is full when this is entered, and nothing runs when it is left."""
    collector = Collector(driver.config, driver.runner, driver.collector._cursor)
    collector._num_started = driver.steps_done * driver.config.algorithm.samples_per_step
    driver.collector = collector
    for _ in range(1 + driver.config.algorithm.max_staleness):
        await _step(driver)
    yield
    await collector.idle()


async def _rollouts(driver: Driver, steps: int) -> list[Group]:
    """The groups of so many steps."""
    return await driver.runner.run(
        driver.collector._cursor.take(steps * driver.config.algorithm.samples_per_step),
        f"alone-{driver.steps_done}",
        size=driver.config.algorithm.group_size,
        temperature=driver.config.rollout.temperature,
    )


async def _timed_rollouts(driver: Driver, steps: int) -> float:
    """Seconds a step while as many groups are in flight as in asynchronous steps."""
    algorithm, runner = driver.config.algorithm, driver.runner
    at_once = (1 + algorithm.max_staleness) * algorithm.samples_per_step
    slots = asyncio.Semaphore(at_once)
    ended: list[float] = []

    async def one(number: int, sample: Sample) -> None:
        async with slots:
            await runner.group(
                sample,
                f"alone-{number}/{sample.id}",
                size=algorithm.group_size,
                temperature=driver.config.rollout.temperature,
            )
            ended.append(time.perf_counter())

    # Before and after those that count others run, so that the engine is as full as ever.
    samples = driver.collector._cursor.take(at_once // 2 + steps * algorithm.samples_per_step + at_once // 2)
    await asyncio.gather(*(one(number, sample) for number, sample in enumerate(samples)))
    first = at_once // 2
    return (ended[first + steps * algorithm.samples_per_step - 1] - ended[first - 1]) / steps


def _each(used: dict[str, float], number: int) -> dict[str, float]:
    return {name: round(seconds / number, 4) for name, seconds in used.items()}


@asynccontextmanager
async def _driver(config: TrainConfig, settings: Settings) -> AsyncIterator[Driver]:
    """The driver of a stage, with everything that it needs."""
    inputs = read_inputs(config)
    total = (settings.repeats + 1) * (2 * settings.steps + 2 + config.algorithm.max_staleness)
    async with (
        reserve(config.run.name, config.placement, config.learner.num_ranks, config.rollout) as reservation,
        learner_group(config, inputs.template, reservation, num_steps=total) as starting,
        group_runner(config, inputs.template, reservation) as runner,
    ):
        learners = await starting
        with MetricsLog(
            config.run.folder, MetricsConfig(wandb="disabled"), None, total, console=Console(file=io.StringIO())
        ) as log:
            driver = Driver(
                config,
                runner=runner,
                learners=learners,
                cursor=Cursor(inputs.samples, config.run.seed),
                held_out=[],
                image_pad_id=inputs.template.image_pad_id,
                num_steps=total,
                log=log,
            )
            try:
                yield driver
            finally:
                await driver.collector.close()
