"""A driver for benchmarks and the planner: its log is written as in a run and shown nowhere, and nothing is evaluated or saved."""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console

from actors.learner.ranks import LearnerRanks
from arm_rl.core.config import MetricsConfig
from arm_rl.core.stage_config import TrainConfig
from arm_rl.data.samples import Cursor
from arm_rl.run.metrics_log import MetricsLog
from arm_rl.training.driver import Driver
from arm_rl.training.group_runner import GroupRunner


@asynccontextmanager
async def silent_driver(
    config: TrainConfig,
    *,
    runner: GroupRunner,
    learners: LearnerRanks,
    cursor: Cursor,
    image_pad_id: int,
    num_steps: int,
) -> AsyncIterator[Driver]:
    """Start a driver whose metrics go to its run folder only; cancel the groups that still run at the end."""
    console = Console(file=io.StringIO())
    with MetricsLog(config.run.folder, MetricsConfig(wandb="disabled"), None, num_steps, console=console) as log:
        driver = Driver(
            config,
            runner=runner,
            learners=learners,
            cursor=cursor,
            held_out=[],
            image_pad_id=image_pad_id,
            num_steps=num_steps,
            log=log,
        )
        try:
            yield driver
        finally:
            await driver.collector.close()


async def logged_step(driver: Driver) -> dict[str, float]:
    """Run one step, log its metrics and return them."""
    metrics = await driver.step()
    driver.steps_done += 1
    driver.log.log(driver.steps_done, metrics)
    return metrics
