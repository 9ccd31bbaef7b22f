"""The driver of a GRPO stage: it owns the loop, the data cursor, the group advantages, the checkpoints and the metrics.

One step:

    samples -> rollouts (groups of trajectories) -> scorers -> advantages -> batches -> learners -> new weights -> rollouts

It holds no maths and no pixels: a group carries a reference to its images, which the learners resolve.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from actors.learner_group import LearnerGroup
from arm_rl import checkpoint
from arm_rl.core.advantage import group_advantages, is_flat
from arm_rl.core.batching import make_batch
from arm_rl.core.config import TrainConfig
from arm_rl.core.loss import GrpoObjective
from arm_rl.core.seeding import derive
from arm_rl.core.training import training_sample
from arm_rl.core.types import Batch, Sample, TrainingSample
from arm_rl.data import Cursor
from arm_rl.evaluation import evaluate
from arm_rl.groups import Group, GroupRunner, RunStopped
from arm_rl.learners import published_folder
from arm_rl.metrics import rollout_metrics
from arm_rl.metrics_log import MetricsLog

logger = logging.getLogger(__name__)


class Driver:
    """Runs the steps of one stage."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        runner: GroupRunner,
        learners: LearnerGroup,
        cursor: Cursor,
        held_out: Sequence[Sample],
        num_steps: int,
        log: MetricsLog,
    ) -> None:
        self.config = config
        self.runner, self.learners = runner, learners
        self.cursor, self.held_out = cursor, held_out
        self.num_steps = num_steps
        self.log = log
        self.steps_done = 0
        self._seconds: dict[str, float] = {}  # of the phases of this step
        self._objective = GrpoObjective.of(config.algorithm, config.rollout.temperature)
        self._takes_turns = config.placement.use_gpu and config.placement.kind == "shared"

    async def run(self) -> None:
        """All steps that are left, with evaluations and checkpoints in between."""
        evaluation, every = self.config.evaluation, self.config.checkpoint.every
        if evaluation.initial and self.steps_done == 0:
            await self._evaluate()
        while self.steps_done < self.num_steps:
            metrics = await self.step()
            self.steps_done += 1
            self.log.log(self.steps_done, metrics)
            last = self.steps_done == self.num_steps
            if (evaluation.final if last else evaluation.every and self.steps_done % evaluation.every == 0) and self.held_out:
                await self._evaluate()
            if last or (every and self.steps_done % every == 0):
                await self.save()

    async def step(self) -> dict[str, float]:
        """One step, and its metrics."""
        self._seconds = {}
        with self._timed("step"):
            with self._timed("rollout"):
                groups, kept = await self._collect()
            with self._timed("learner"):
                async with self._gpus_for_learners():
                    learned = await self._learn(kept)
            with self._timed("sync"):
                await self._sync(self.steps_done + 1)
        every = self.config.metrics.trajectories_every
        if every and self.steps_done % every == 0:
            self.runner.record(self.config.run.name, self.steps_done + 1, groups)
        return {
            **rollout_metrics([one for group in groups for one in group.scored], {group.sample.id: group.sample for group in groups}),
            "rollout/groups_kept": len(kept) / len(groups),
            **learned,
            **{f"time/{name}": seconds for name, seconds in self._seconds.items()},
        }

    async def save(self) -> None:
        """Writes a checkpoint."""
        state = {"step": self.steps_done, "cursor": self.cursor.state()}
        folder = self.config.run.folder / "checkpoints"
        with checkpoint.writing(folder, self.steps_done, state, self.config.checkpoint.keep) as target:
            await asyncio.to_thread(self.learners.save, target)

    async def resume(self) -> None:
        """Goes on from the run folder's newest checkpoint, if there is one, and serves its weights."""
        found = checkpoint.latest(self.config.run.folder / "checkpoints")
        if found is None:
            return
        await asyncio.to_thread(self.learners.load, found.folder)
        self.cursor.restore(found.state["cursor"])
        self.steps_done = found.step
        await self._sync(found.step)
        logger.info("going on from step %d (%s)", found.step, found.folder)

    async def _collect(self) -> tuple[list[Group], list[Group]]:
        """The step's groups, and those of them that have something to teach."""
        algorithm = self.config.algorithm
        for attempt in range(algorithm.max_empty_steps):
            groups = await self.runner.run(
                self.cursor.take(algorithm.samples_per_step),
                f"{self.steps_done}.{attempt}",
                size=algorithm.group_size,
                temperature=self.config.rollout.temperature,
            )
            kept = [group for group in groups if not (algorithm.drop_flat_groups and is_flat(group.rewards))]
            if kept:
                return groups, kept
            logger.warning("step %d: all groups are flat, drawing new samples", self.steps_done)
        raise RunStopped(
            f"step {self.steps_done}: in {algorithm.max_empty_steps} tries every group had equal rewards; "
            "nothing can be learned (is the data too easy or too hard, or the format never right?)"
        )

    async def _learn(self, groups: Sequence[Group]) -> dict[str, float]:
        """All optimizer steps of this step; metrics are means over them."""
        images = {image.key: group.images for group in groups for one in group.scored for image in one.trajectory.images}
        results = [await asyncio.to_thread(self.learners.train, batch, images, self._objective) for batch in self._batches(groups)]
        return {name: sum(result[name] for result in results) / len(results) for name in results[0]}

    def _batches(self, groups: Sequence[Group]) -> Iterator[Batch]:
        """Mini-batches of whole groups, in a new order for each epoch of the step."""
        algorithm, learner = self.config.algorithm, self.config.learner
        per_batch = algorithm.mini_batch_samples or algorithm.samples_per_step
        samples = [_training_samples(group, algorithm.scale_by_std) for group in groups]
        versions = {turn.policy_version for group in groups for one in group.scored for turn in one.trajectory.turns}
        for epoch in range(algorithm.epochs_per_step):
            order = sorted(range(len(groups)), key=lambda number: derive(self.config.run.seed, self.steps_done, epoch, number))
            for start in range(0, len(order), per_batch):
                chosen = [sample for number in order[start : start + per_batch] for sample in samples[number]]
                yield make_batch(chosen, num_ranks=learner.num_ranks, micro_batch_size=learner.micro_batch_size, policy_versions=versions)

    async def _sync(self, version: int) -> None:
        """Brings the engines to the learners' weights."""
        node_ids = self.runner.rollouts.node_ids
        published = await asyncio.to_thread(self.learners.publish, published_folder(self.config), version, node_ids)
        await self.runner.rollouts.update_weights(published)

    async def _evaluate(self) -> None:
        metrics = await evaluate(self.runner, self.held_out, self.config.evaluation, stage=self.config.run.name, step=self.steps_done)
        self.log.log(self.steps_done, {f"evaluation/{name}": value for name, value in metrics.items()})

    @asynccontextmanager
    async def _gpus_for_learners(self) -> AsyncIterator[None]:
        """Where learners and engines share GPUs, the engines sleep meanwhile."""
        if self._takes_turns:
            await self.runner.rollouts.sleep()
        yield
        if self._takes_turns:
            await self.runner.rollouts.wake()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds[name] = time.perf_counter() - started


def _training_samples(group: Group, scale_by_std: bool) -> list[TrainingSample]:
    advantages = group_advantages(group.rewards, scale_by_std=scale_by_std)
    return [
        training_sample(one.trajectory, advantage) for one, advantage in zip(group.scored, advantages, strict=True) if advantage is not None
    ]
