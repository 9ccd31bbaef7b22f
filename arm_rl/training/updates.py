"""The optimizer steps of a driver's step: selected groups -> advantages -> training samples -> mini-batches -> learners."""

import asyncio
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import ray

from actors.learner.ranks import LearnerRanks
from arm_rl.core.advantage import group_advantages
from arm_rl.core.batching import make_batch
from arm_rl.core.loss import GrpoObjective
from arm_rl.core.seeding import derive_seed
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.tracing import span
from arm_rl.core.training_sample import training_sample
from arm_rl.core.types import Batch, TrainingSample
from arm_rl.training.select import Selection

GroupSamples = Sequence[Sequence[TrainingSample]]  # [group][sample]


class Updates:
    """Trains the learners on the groups of a step."""

    def __init__(self, config: TrainConfig, learners: LearnerRanks, image_pad_id: int) -> None:
        self._config, self._learners, self._image_pad_id = config, learners, image_pad_id
        self._objective = GrpoObjective.of(config.algorithm, config.rollout.temperature)
        # Where a step has one update, the learners score the very weights that it starts from: no pass of its own is needed.
        self.num_applied = 0  # optimizer steps of a step that is not finished
        self._rescores = config.algorithm.proximal == "recomputed" and config.algorithm.updates_per_step > 1

    async def run(self, step: int, selections: Sequence[Selection]) -> dict[str, float]:
        """Run all optimizer steps of a step; return the means of their metrics.

        Raises:
            BadBatch: If a batch was refused before it could change the weights.
        """
        images = {
            image.key: one.group.images
            for one in selections
            for scored in one.group.scored
            for image in scored.trajectory.images
        }
        with span("batch"):
            samples: GroupSamples = [self._training_samples(one) for one in selections]
        if self._rescores:
            samples = await self._with_proximal_logprobs(samples, images)
        results = []
        for batch in self._mini_batches(step, samples):
            results.append(await asyncio.to_thread(self._learners.train, batch, images, self._objective))
            self.num_applied += 1
        self.num_applied = 0
        return {name: sum(result[name] for result in results) / len(results) for name in results[0]}

    def _training_samples(self, selection: Selection) -> list[TrainingSample]:
        """Return the group's trained trajectories as the learners see them, each with its advantage in the group."""
        rewards, scale_by_std = selection.group.rewards, self._config.algorithm.scale_by_std
        advantages = group_advantages(rewards, scale_by_std=scale_by_std)
        return [
            training_sample(scored.trajectory, advantage, image_pad_id=self._image_pad_id)
            for scored, advantage, fate in zip(selection.group.scored, advantages, selection.fates, strict=True)
            if fate == "trained" and advantage is not None
        ]

    async def _with_proximal_logprobs(self, samples: GroupSamples, images: Mapping[str, ray.ObjectRef]) -> GroupSamples:
        """Add the samples' log-probabilities under the weights that the step starts from."""
        batch = self._batch([sample for members in samples for sample in members])
        scored = await asyncio.to_thread(self._learners.score, batch, images, self._objective.temperature)
        return [
            [dataclasses.replace(sample, proximal_logprobs=scored.get(sample.key, ())) for sample in members]
            for members in samples
        ]

    def _mini_batches(self, step: int, samples: GroupSamples) -> Iterator[Batch]:
        """Split the step's groups evenly over mini-batches, in another order for each epoch of the step.

        Zero-variance groups were dropped before: a remainder of a few groups would be an update at the full learning rate.
        """
        algorithm = self._config.algorithm
        number = math.ceil(len(samples) / (algorithm.mini_batch_samples or algorithm.samples_per_step))
        for epoch in range(algorithm.epochs_per_step):
            order = sorted(
                range(len(samples)), key=lambda place: derive_seed(self._config.run.seed, step, epoch, place)
            )
            ends = [len(order) * part // number for part in range(number + 1)]
            for start, end in itertools.pairwise(ends):
                yield self._batch([sample for place in order[start:end] for sample in samples[place]])

    def _batch(self, samples: Sequence[TrainingSample]) -> Batch:
        learner = self._config.learner
        with span("batch"):
            return make_batch(samples, num_ranks=learner.num_ranks, micro_batch_tokens=learner.micro_batch_tokens)
