"""A GRPO stage from configuration to export."""

import asyncio
import math

from actors.learner_group import LearnerGroup
from actors.placement import Reservation, plan
from arm_rl.core.config import TrainConfig
from arm_rl.data import Cursor
from arm_rl.driver import Driver
from arm_rl.groups import group_runner
from arm_rl.inputs import read_inputs
from arm_rl.metrics_log import MetricsLog
from arm_rl.run_folder import open_run


async def train_grpo(config: TrainConfig) -> None:
    """Runs the stage and exports the model to the run folder; a run started again goes on from its last checkpoint."""
    inputs = read_inputs(config)
    num_steps = config.num_steps or config.num_epochs * math.ceil(len(inputs.samples) / config.algorithm.samples_per_step)
    folder = open_run(config)
    reservation = Reservation(plan(config.placement, config.learner.num_ranks, config.rollout))
    starting = asyncio.ensure_future(LearnerGroup.start(config, reservation, num_steps=num_steps, template=inputs.template))
    try:
        async with group_runner(config, inputs.template, reservation) as runner:
            learners = await starting
            with MetricsLog(folder, config.metrics, config, num_steps, stage=config.run.name) as log:
                driver = Driver(
                    config,
                    runner=runner,
                    learners=learners,
                    cursor=Cursor(inputs.samples, config.run.seed),
                    held_out=inputs.held_out,
                    num_steps=num_steps,
                    log=log,
                )
                await driver.resume()
                await driver.run()
            await learners.export(folder / "export")
    finally:
        started = (await asyncio.gather(starting, return_exceptions=True))[0]
        if not isinstance(started, BaseException):
            await started.close()
        reservation.release()
