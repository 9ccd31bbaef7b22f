"""A GRPO stage from configuration to export."""

import asyncio
import math

from actors.placement import Reservation, plan
from arm_rl.core.config import TrainConfig
from arm_rl.data import Cursor
from arm_rl.driver import Driver
from arm_rl.groups import group_runner
from arm_rl.inputs import Inputs, read_inputs
from arm_rl.learners import learner_group
from arm_rl.metrics_log import MetricsLog
from arm_rl.restarts import Progress, with_restarts
from arm_rl.run_folder import finished, open_run
from arm_rl.timeline import Timeline


async def train_grpo(config: TrainConfig) -> None:
    """Runs the stage and exports the model to the run folder.

    A run started again goes on from its last checkpoint; one that is finished is left as it is.
    """
    inputs = read_inputs(config)
    num_steps = config.num_steps or config.num_epochs * math.ceil(len(inputs.samples) / config.algorithm.samples_per_step)
    if not finished(open_run(config), num_steps):
        await with_restarts(lambda progress: _run(config, inputs, num_steps, progress), config.run.max_restarts)


async def _run(config: TrainConfig, inputs: Inputs, num_steps: int, progress: Progress) -> None:
    """Starts everything, goes on from the last checkpoint, and ends everything."""
    folder = config.run.folder
    reservation = Reservation(plan(config.placement, config.learner.num_ranks, config.rollout))
    try:
        async with (
            learner_group(config, inputs.template, reservation, num_steps=num_steps * config.algorithm.updates_per_step) as starting,
            group_runner(config, inputs.template, reservation, transfer=config.transfer) as runner,
        ):
            learners = await starting
            with MetricsLog(folder, config.metrics, config, num_steps, stage=config.run.name) as log:
                driver = Driver(
                    config,
                    runner=runner,
                    learners=learners,
                    cursor=Cursor(inputs.samples, config.run.seed),
                    held_out=inputs.held_out,
                    image_pad_id=inputs.template.image_pad_id,
                    num_steps=num_steps,
                    log=log,
                    timeline=Timeline(folder) if config.metrics.timeline else None,
                    progress=progress,
                )
                try:
                    await driver.resume()
                    await driver.run()
                finally:
                    await driver.close()
                await asyncio.to_thread(learners.export, folder / "export")
                log.artifact("export", folder / "export")
    finally:
        reservation.release()
