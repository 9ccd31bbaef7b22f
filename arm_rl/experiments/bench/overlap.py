"""How well rollouts and learning overlap: asynchronous steps, against the slower of the two when it runs alone.

    steps:    the driver's own, with `algorithm.max_staleness` above 0, and weights synced after each
    rollouts: as many groups in flight, nothing else running
    learner:  the batches of a step, one after the other, nothing else running

All three run on the same actors, in turn. The engine has one thread and the learner one; the learning rate is 0.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from actors.cluster.reservation import reserve
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.types import Sample
from arm_rl.data.samples import Cursor
from arm_rl.experiments.bench import sessions, usage
from arm_rl.experiments.bench.benchmark import Measurement, SpeedBenchmark, Workspace
from arm_rl.training.collector import Collector
from arm_rl.training.driver import Driver
from arm_rl.training.group import Group
from arm_rl.training.inputs import read_inputs
from arm_rl.training.select import Selection
from arm_rl.training.silent_driver import logged_step, silent_driver
from arm_rl.training.startup import group_runner, learner_ranks

NUM_SAMPLES = 1024  # many, so that no prompt comes again soon


@dataclass(frozen=True, kw_only=True)
class OverlapSettings:
    """Numbers of steps and repeats."""

    max_staleness: int = 1
    steps: int = 8  # of one measurement
    repeats: int = 5
    overrides: tuple[str, ...] = ()  # of the demo's configuration


def measure(settings: OverlapSettings, workspace: Workspace) -> Measurement:
    """Measure steps a second, with rollouts and learner together and with each alone."""
    config = sessions.demo_config(
        workspace,
        sessions.judge(workspace),
        "run.name=overlap",
        f"algorithm.max_staleness={settings.max_staleness}",
        "algorithm.drop_flat_groups=false",  # every step trains as many trajectories
        "learner.num_threads=1",
        "learner.learning_rate=0",
        "learner.schedule=constant",
        "metrics.wandb=disabled",
        "metrics.trajectories_every=0",
        *settings.overrides,
        num_samples=NUM_SAMPLES,
    )
    return asyncio.run(_measure(config, settings))


BENCHMARK = SpeedBenchmark(
    key="overlap",
    what="asynchronous steps, over 1 / max(rollouts alone, learner alone)",
    unit="steps/s",
    goal=0.8,
    settings=OverlapSettings(),
    quick=OverlapSettings(steps=3, repeats=2),
    measure=measure,
)


async def _measure(config: TrainConfig, settings: OverlapSettings) -> Measurement:
    steps = settings.steps
    together: list[float] = []  # seconds a step
    rollouts, learner, syncs, waits, too_old = list[float](), list[float](), list[float](), list[float](), 0.0
    used: dict[str, dict[str, float]] = {}
    async with _started(config, settings) as (driver, cursor):
        groups = await _rollouts(driver, cursor)
        await _timed_learning(driver, groups, 1)
        for _ in range(settings.repeats):
            async with _asynchronous(driver, cursor):
                before, started = usage.cpu_seconds(), time.perf_counter()
                for _ in range(steps):
                    metrics = await logged_step(driver)
                    syncs.append(metrics["time/sync"])
                    waits.append(metrics["time/rollout"])
                    too_old += metrics["rollout/groups_too_old"]
                together.append((time.perf_counter() - started) / steps)
                used["together"] = _each(usage.since(before), steps)
            before = usage.cpu_seconds()
            rollouts.append(await _timed_rollouts(driver, cursor, steps))
            used["rollouts"] = _each(usage.since(before), steps + 1 + config.algorithm.max_staleness)
            before = usage.cpu_seconds()
            learner.append(await _timed_learning(driver, groups, steps))
            used["learner"] = _each(usage.since(before), steps)
    return Measurement(
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


@asynccontextmanager
async def _asynchronous(driver: Driver, cursor: Cursor) -> AsyncIterator[None]:
    """Begin the stage anew and fill the pipeline; at the end, wait until no group runs."""
    driver.steps_done = 0
    driver.collector = Collector(driver.config, driver.runner, cursor)  # keeps no finished groups on disk
    await driver.resume(serves_other=True)  # the engine goes back to version 0
    for _ in range(1 + driver.config.algorithm.max_staleness):
        await logged_step(driver)
    yield
    await driver.collector.idle()


async def _rollouts(driver: Driver, cursor: Cursor) -> list[Group]:
    """Return the groups of one step."""
    algorithm = driver.config.algorithm
    return await driver.runner.run_all(
        cursor.take(algorithm.samples_per_step),
        "alone",
        size=algorithm.group_size,
        temperature=driver.config.rollout.temperature,
    )


async def _timed_learning(driver: Driver, groups: Sequence[Group], steps: int) -> float:
    """Train on the same groups again and again; return seconds a step."""
    selections = [
        Selection(number=number, group=group, is_too_old=False, fates=tuple("trained" for _ in group.scored))
        for number, group in enumerate(groups)
    ]
    started = time.perf_counter()
    for _ in range(steps):
        await driver.learn(selections)
    return (time.perf_counter() - started) / steps


async def _timed_rollouts(driver: Driver, cursor: Cursor, steps: int) -> float:
    """Return seconds a step while as many groups are in flight as in asynchronous steps."""
    algorithm, runner = driver.config.algorithm, driver.runner
    at_once = (1 + algorithm.max_staleness) * algorithm.samples_per_step
    slots = asyncio.Semaphore(at_once)
    ended: list[float] = []

    async def one(number: int, sample: Sample) -> None:
        async with slots:
            await runner.run_group(
                sample,
                f"alone-{number}/{sample.id}",
                size=algorithm.group_size,
                temperature=driver.config.rollout.temperature,
            )
            ended.append(time.perf_counter())

    # More groups run before and after those that are timed, so that the engine is always as full.
    samples = cursor.take(at_once // 2 + steps * algorithm.samples_per_step + at_once // 2)
    await asyncio.gather(*(one(number, sample) for number, sample in enumerate(samples)))
    first = at_once // 2
    return (ended[first + steps * algorithm.samples_per_step - 1] - ended[first - 1]) / steps


def _each(used: dict[str, float], number: int) -> dict[str, float]:
    return {name: round(seconds / number, 4) for name, seconds in used.items()}


@asynccontextmanager
async def _started(config: TrainConfig, settings: OverlapSettings) -> AsyncIterator[tuple[Driver, Cursor]]:
    """Start the driver of a stage with everything that it needs, and the cursor that its samples come from."""
    inputs = read_inputs(config)
    cursor = Cursor(inputs.samples, config.run.seed)
    total = (settings.repeats + 1) * (2 * settings.steps + 2 + config.algorithm.max_staleness)
    async with (
        reserve(config.run.name, config.placement, config.learner.num_ranks, config.rollout) as reservation,
        learner_ranks(config, inputs.template, reservation, num_steps=total) as starting,
        group_runner(config, inputs.template, reservation) as runner,
        silent_driver(
            config,
            runner=runner,
            learners=await starting,
            cursor=cursor,
            image_pad_id=inputs.template.image_pad_id,
            num_steps=total,
        ) as driver,
    ):
        yield driver, cursor
