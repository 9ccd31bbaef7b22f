"""The supervised cold start: demonstrations through the same learners as GRPO, with the negative log-likelihood as objective."""

import asyncio
import math
from collections.abc import Mapping, Sequence

import numpy as np
import ray

from actors.placement import Reservation, plan
from arm_rl import checkpoint
from arm_rl.core.batching import make_batch
from arm_rl.core.config import SftConfig
from arm_rl.core.loss import SftObjective
from arm_rl.core.seeding import derive
from arm_rl.core.template import Template
from arm_rl.core.training import training_sample
from arm_rl.core.types import Batch, TrainingSample
from arm_rl.demonstrations import read_demonstrations
from arm_rl.inputs import read_template
from arm_rl.learners import learner_group
from arm_rl.metrics_log import MetricsLog
from arm_rl.restarts import Progress, with_restarts
from arm_rl.rows import BrokenRows
from arm_rl.run_folder import exporting, finished, open_run


async def train_sft(config: SftConfig) -> None:
    """Trains on config.data.train and exports the model to the run folder.

    A run started again goes on from its last checkpoint; one that is finished is left as it is.
    """
    template = read_template(config)
    broken = BrokenRows.of(config.data)
    trajectories, images = read_demonstrations(config.data.train, template, config.data, broken)
    samples = [training_sample(one, 1.0, image_pad_id=template.image_pad_id, share_prompt=False) for one in trajectories]
    steps_per_epoch = math.ceil(len(samples) / config.batch_size)
    num_steps = steps_per_epoch * config.num_epochs
    if not finished(open_run(config), num_steps):
        stored = dict.fromkeys(images, ray.put(images))
        await with_restarts(lambda progress: _run(config, template, samples, stored, broken.number, progress), config.run.max_restarts)


async def _run(
    config: SftConfig,
    template: Template,
    samples: Sequence[TrainingSample],
    images: Mapping[str, ray.ObjectRef],
    num_skipped: int,
    progress: Progress,
) -> None:
    """Starts the learners, goes on from the last checkpoint, and ends them."""
    folder = config.run.folder
    steps_per_epoch = math.ceil(len(samples) / config.batch_size)
    num_steps = steps_per_epoch * config.num_epochs
    reservation = Reservation(plan(config.placement, config.learner.num_ranks, None))
    try:
        async with learner_group(config, template, reservation, num_steps=num_steps) as starting:
            learners = await starting
            found = checkpoint.latest(folder / "checkpoints")
            if found is not None:
                await asyncio.to_thread(learners.load, found.folder)
            skipped = {"data/skipped_rows": float(num_skipped)}
            with MetricsLog(folder, config.metrics, config, num_steps, stage=config.run.name, first=skipped) as log:
                for step in range(found.step if found is not None else 0, num_steps):
                    batch = _batch(samples, config, *divmod(step, steps_per_epoch))
                    metrics = await asyncio.to_thread(learners.train, batch, images, SftObjective())
                    progress.reached(step + 1)
                    log.log(step + 1, metrics | progress.metrics())
                    last, every = step + 1 == num_steps, config.checkpoint.every
                    if last or (every and (step + 1) % every == 0):
                        state = {"step": step + 1}
                        with checkpoint.writing(folder / "checkpoints", step + 1, state, config.checkpoint.keep) as target:
                            await asyncio.to_thread(learners.save, target)
            with exporting(folder, num_steps) as target:
                await asyncio.to_thread(learners.export, target)
    finally:
        reservation.release()


def _batch(samples: Sequence[TrainingSample], config: SftConfig, epoch: int, number: int) -> Batch:
    """The epoch's batch of that number, in an order that depends on the seed only."""
    order = np.random.default_rng(derive(config.run.seed, "sft", epoch)).permutation(len(samples))
    chosen = order[number * config.batch_size : (number + 1) * config.batch_size]
    return make_batch(
        [samples[index] for index in chosen], num_ranks=config.learner.num_ranks, micro_batch_tokens=config.learner.micro_batch_tokens
    )
