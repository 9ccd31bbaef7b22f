"""A GRPO stage from configuration to export."""

import asyncio
import math

from actors.cluster.connection import require_shared
from actors.cluster.reservation import reserve
from arm_rl.core.phases import log_phase
from arm_rl.core.stage_config import TrainConfig
from arm_rl.data.samples import Cursor
from arm_rl.export.model_card import write_card
from arm_rl.run.folder import export_folder, is_finished, open_run
from arm_rl.run.lock import locked
from arm_rl.run.metrics_log import MetricsLog
from arm_rl.run.timeline import Timeline
from arm_rl.training.driver import Driver
from arm_rl.training.graceful_stop import StopRequest, stopped_by_signal
from arm_rl.training.inputs import Inputs, read_inputs
from arm_rl.training.restarts import StageProgress, with_restarts
from arm_rl.training.startup import RolloutService, group_runner, learner_ranks


async def train_grpo(config: TrainConfig, engines: RolloutService | None = None) -> None:
    """Runs the stage and exports the model to the run folder.

    A run started again goes on from its last checkpoint; one that is finished is left as it is.

    Args:
        engines: that serve a model of this shape, whichever its weights; by default some of its own.

    Raises:
        StoppedOnRequest: If SIGTERM or Ctrl-C came; a checkpoint is written first.
        ConfigError: If another process works in the run folder.
    """
    inputs = read_inputs(config)
    num_steps = config.num_steps or config.num_epochs * math.ceil(
        len(inputs.samples) / config.algorithm.samples_per_step
    )
    log_phase(
        f"data and model checked: {len(inputs.samples)} samples, {len(inputs.held_out)} held out, {num_steps} steps"
    )
    with locked(config.run.folder):
        if is_finished(open_run(config), num_steps):
            return
        await require_shared(config.run.folder)
        with stopped_by_signal() as stop:
            await with_restarts(
                lambda progress: _run(config, inputs, num_steps, progress, stop, engines), config.run.max_restarts
            )


async def _run(
    config: TrainConfig,
    inputs: Inputs,
    num_steps: int,
    progress: StageProgress,
    stop: StopRequest,
    engines: RolloutService | None,
) -> None:
    """Starts everything, goes on from the last checkpoint, and ends everything."""
    folder, rollout = config.run.folder, None if engines else config.rollout
    async with (
        reserve(
            config.run.name, progress.placement(config.placement), config.learner.num_ranks, rollout
        ) as reservation,
        learner_ranks(
            config, inputs.template, reservation, num_steps=num_steps * config.algorithm.updates_per_step
        ) as starting,
        group_runner(config, inputs.template, engines or reservation, transfer=config.transfer) as runner,
    ):
        log_phase("engines: up")
        learners = await starting
        log_phase("learners: up")
        with MetricsLog(folder, config.metrics, config, num_steps, stage=config.run.name, first=inputs.left_out) as log:
            driver = Driver(
                config,
                runner=runner,
                learners=learners,
                cursor=Cursor.from_weights(inputs.samples, config.run.seed, config.data.weights),
                held_out=inputs.held_out,
                image_pad_id=inputs.template.image_pad_id,
                num_steps=num_steps,
                log=log,
                timeline=Timeline(folder) if config.metrics.timeline else None,
                progress=progress,
                stop=stop,
            )
            try:
                await driver.resume(serves_other=engines is not None)
                log_phase(f"step {driver.steps_done + 1} of {num_steps} begins")
                await driver.run()
            finally:
                await driver.close()
            with export_folder(folder, num_steps) as target:
                await asyncio.to_thread(learners.export, target)
                write_card(config, folder, target, num_steps)
            log.log_artifact("export", folder / "export")
