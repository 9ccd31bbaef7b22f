"""The supervised cold start: demonstrations through the same learners as GRPO, with the negative log-likelihood as objective."""

import asyncio
import math
from collections.abc import Mapping

import ray

from actors.cluster.connection import require_shared
from actors.cluster.reservation import reserve
from actors.gauges import Gauges
from arm_rl.core.batching import make_batch
from arm_rl.core.errors import BadBatch
from arm_rl.core.images import Image
from arm_rl.core.loss import SftObjective
from arm_rl.core.phases import log_phase
from arm_rl.core.stage_config import SftConfig
from arm_rl.core.template import Template
from arm_rl.core.training_sample import training_sample
from arm_rl.core.types import Batch
from arm_rl.data.demonstrations import Demonstration, read_demonstrations
from arm_rl.data.epoch_order import Order
from arm_rl.data.lazy_rows import LazyRows
from arm_rl.data.parquet_rows import BrokenRows
from arm_rl.export.model_card import write_card
from arm_rl.run import checkpoint
from arm_rl.run.folder import export_folder, is_finished, open_run
from arm_rl.run.lock import locked
from arm_rl.run.metrics_log import MetricsLog
from arm_rl.training.graceful_stop import StopRequest, stopped_by_signal
from arm_rl.training.inputs import read_template
from arm_rl.training.restarts import StageProgress, with_restarts
from arm_rl.training.startup import learner_ranks


async def train_sft(config: SftConfig) -> None:
    """Trains on config.data.train and exports the model to the run folder.

    A run started again goes on from its last checkpoint; one that is finished is left as it is.

    Raises:
        StoppedOnRequest: If SIGTERM or Ctrl-C came; a checkpoint is written first.
        ConfigError: If another process works in the run folder.
    """
    template = read_template(config)
    broken = BrokenRows.of(config.data)
    demonstrations = read_demonstrations(
        config.data.train, template, config.data, max_tokens=config.max_tokens, broken=broken
    )
    batches = Batches(config, template, demonstrations)
    log_phase(f"data and model checked: {len(demonstrations)} demonstrations, {batches.num_steps} steps")
    with locked(config.run.folder):
        if is_finished(open_run(config), batches.num_steps):
            return
        await require_shared(config.run.folder)
        with stopped_by_signal() as stop:
            await with_restarts(
                lambda progress: _run(config, template, batches, broken.metrics(), progress, stop),
                config.run.max_restarts,
            )


async def _run(
    config: SftConfig,
    template: Template,
    batches: "Batches",
    left_out: Mapping[str, float],
    progress: StageProgress,
    stop: StopRequest,
) -> None:
    """Starts the learners, goes on from the last checkpoint, and ends them."""
    folder, num_steps = config.run.folder, batches.num_steps
    gauges = Gauges(config.run.name)
    async with (
        reserve(config.run.name, progress.placement(config.placement), config.learner.num_ranks, None) as reservation,
        learner_ranks(config, template, reservation, num_steps=num_steps) as starting,
    ):
        learners = await starting
        log_phase("learners: up")
        found = checkpoint.latest(folder / "checkpoints")
        if found is not None:
            batches.demonstrations.require_same(found.state.get("data"))
            await asyncio.to_thread(learners.load, found.folder)
        with (
            MetricsLog(folder, config.metrics, config, num_steps, stage=config.run.name, first=left_out) as log,
            stop.deferred(),
        ):

            async def save(step: int) -> None:
                state = {"step": step, "data": batches.demonstrations.fingerprint}
                with checkpoint.write_checkpoint(folder / "checkpoints", step, state, config.checkpoint.keep) as target:
                    await asyncio.to_thread(learners.save, target)
                log.log_artifact("checkpoint", folder / "checkpoints" / str(step))

            first = found.step if found is not None else 0
            log_phase(f"step {first + 1} of {num_steps} begins")
            for step in range(first, num_steps):
                batch, images = await asyncio.to_thread(batches.read, step)
                stored = dict.fromkeys(images, ray.put(images))
                try:
                    metrics = await asyncio.to_thread(learners.train, batch, stored, SftObjective())
                except BadBatch:  # the weights are as they were
                    if step > first:
                        await save(step)
                    raise
                progress.reached(step + 1)
                log.log(step + 1, metrics | progress.metrics())
                gauges.set(step + 1, metrics)
                last, every = step + 1 == num_steps, config.checkpoint.every
                if last or stop.asked or (every and (step + 1) % every == 0):
                    await save(step + 1)
                if not last:
                    stop.check()
            with export_folder(folder, num_steps) as target:
                await asyncio.to_thread(learners.export, target)
                write_card(config, folder, target, num_steps)
            log.log_artifact("export", folder / "export")


class Batches:
    """The demonstrations, cut into the steps of a run; each is read from disk when its step comes."""

    def __init__(self, config: SftConfig, template: Template, demonstrations: LazyRows[Demonstration]) -> None:
        self._config, self._pad_id, self.demonstrations = config, template.image_pad_id, demonstrations
        self._order = Order.from_weights(
            config.run.seed, demonstrations.track_names, demonstrations.tracks, config.data.weights, purpose="sft"
        )
        self._steps_per_epoch = math.ceil(len(demonstrations) / config.batch_size)
        self.num_steps = self._steps_per_epoch * config.num_epochs

    def read(self, step: int) -> tuple[Batch, dict[str, Image]]:
        """Return the batch of a step from 0 on, and its images by key. An epoch is split evenly over its steps."""
        epoch, number = divmod(step, self._steps_per_epoch)
        learner, order = self._config.learner, self._order.sample_numbers(epoch)
        start, end = (len(order) * part // self._steps_per_epoch for part in (number, number + 1))
        chosen = [self.demonstrations[int(place)] for place in order[start:end]]
        samples = [training_sample(one.trajectory, 1.0, image_pad_id=self._pad_id) for one in chosen]
        batch = make_batch(samples, num_ranks=learner.num_ranks, micro_batch_tokens=learner.micro_batch_tokens)
        return batch, {key: image for one in chosen for key, image in one.images.items()}
