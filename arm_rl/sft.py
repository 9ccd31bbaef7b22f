"""The supervised cold start: demonstrations through the same learners as GRPO, with the negative log-likelihood as objective."""

import math
from collections.abc import Sequence

import numpy as np
import ray

from actors.learner_group import LearnerGroup
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
from arm_rl.metrics_log import MetricsLog
from arm_rl.run_folder import open_run
from tools import load_tools


async def train_sft(config: SftConfig) -> None:
    """Trains on config.data.train and exports the model to the run folder; a run started again goes on from its last checkpoint."""
    folder = open_run(config)
    schemas = {name: tool.schema for name, tool in load_tools(config.tools.files).items()}
    template = Template.load(config.model, config.template, schemas)
    trajectories, images = read_demonstrations(config.data.train, template)
    samples = [training_sample(trajectory, 1.0) for trajectory in trajectories]
    steps_per_epoch = math.ceil(len(samples) / config.batch_size)
    num_steps = steps_per_epoch * config.num_epochs
    reservation = Reservation(plan(config.placement, config.learner.num_ranks, None))
    learners = await LearnerGroup.start(config, reservation, num_steps=num_steps, template=template)
    try:
        found = checkpoint.latest(folder / "checkpoints")
        if found is not None:
            await learners.load(found.folder)
        stored = ray.put(images)
        with MetricsLog(folder, config.metrics, config, num_steps, stage=config.run.name) as log:
            for step in range(found.step if found is not None else 0, num_steps):
                batch = _batch(samples, config, *divmod(step, steps_per_epoch))
                metrics = await learners.train(batch, [stored], SftObjective())
                log.step(step + 1, {f"learner/{name}": value for name, value in metrics.items()})
                last, every = step + 1 == num_steps, config.checkpoint.every
                if last or (every and (step + 1) % every == 0):
                    state = {"step": step + 1}
                    with checkpoint.writing(folder / "checkpoints", step + 1, state, config.checkpoint.keep) as target:
                        await learners.save(target)
        await learners.export(folder / "export")
    finally:
        await learners.close()
        reservation.release()


def _batch(samples: Sequence[TrainingSample], config: SftConfig, epoch: int, number: int) -> Batch:
    """The epoch's batch of that number, in an order that depends on the seed only."""
    order = np.random.default_rng(derive(config.run.seed, "sft", epoch)).permutation(len(samples))
    chosen = order[number * config.batch_size : (number + 1) * config.batch_size]
    return make_batch(
        [samples[index] for index in chosen], num_ranks=config.learner.num_ranks, micro_batch_size=config.learner.micro_batch_size
    )
