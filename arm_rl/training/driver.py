"""The driver of a GRPO stage: it owns the loop, the data cursor, the group advantages, the checkpoints and the metrics.

One step:

    samples -> rollouts (groups of trajectories) -> scorers -> advantages -> batches -> learners -> new weights -> rollouts

With `algorithm.max_staleness` above 0, rollouts go on while the learners train (`collector.py` says how far ahead). The driver holds no
maths and no pixels: a group carries a reference to its images, which the learners resolve.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

import ray

from actors.gauges import Gauges
from actors.learner.ranks import LearnerRanks
from actors.supervision import cause_of
from arm_rl.core import trajectory_file
from arm_rl.core.advantage import group_advantages
from arm_rl.core.batching import make_batch
from arm_rl.core.config import TrainConfig
from arm_rl.core.errors import BadBatch
from arm_rl.core.loss import GrpoObjective
from arm_rl.core.seeding import derive_seed
from arm_rl.core.tracing import recorded, span
from arm_rl.core.training_sample import training_sample
from arm_rl.core.types import Batch, Sample, TrainingSample
from arm_rl.data.samples import Cursor
from arm_rl.run import checkpoint
from arm_rl.run.metrics import rollout_metrics
from arm_rl.run.metrics_log import MetricsLog
from arm_rl.run.timeline import Timeline
from arm_rl.training.collector import Collector
from arm_rl.training.evaluation import evaluate
from arm_rl.training.finished_groups import Journal
from arm_rl.training.graceful_stop import StoppedOnRequest, StopRequest
from arm_rl.training.groups import Group, GroupRunner, RunStopped, number_of
from arm_rl.training.learners import published_folder
from arm_rl.training.ledger import fates
from arm_rl.training.restarts import StageProgress

logger = logging.getLogger(__name__)

_FINISHED = "groups.parquet"  # in a checkpoint: groups that wait for a step

GroupSamples = Sequence[Sequence[TrainingSample]]  # of each group


class Driver:
    """Runs the steps of one stage."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        runner: GroupRunner,
        learners: LearnerRanks,
        cursor: Cursor,
        held_out: Sequence[Sample],
        image_pad_id: int,
        num_steps: int,
        log: MetricsLog,
        timeline: Timeline | None = None,
        progress: StageProgress | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.config = config
        self.runner, self.learners = runner, learners
        self.held_out = held_out
        # A synchronous run needs none: what it does again after a kill, it does with the same bits.
        self._checkpoints = config.run.folder / "checkpoints"
        self._journal = Journal(runner, self._checkpoints) if config.algorithm.max_staleness else None
        self.collector = Collector(config, self._journal or runner, cursor)
        self.num_steps = num_steps
        self.log, self.timeline = log, timeline
        self._progress = progress or StageProgress()
        self._stop = stop or StopRequest()
        self._gauges = Gauges(config.run.name)
        self._owes_evaluation = config.evaluation.initial
        self.steps_done = 0
        self._seconds: dict[str, float] = {}  # of the phases of this step
        self._image_pad_id = image_pad_id
        self._objective = GrpoObjective.of(config.algorithm, config.rollout.temperature)
        # Where a step has one update, the learners score the very weights that it starts from: no pass of its own is needed.
        self._rescores = config.algorithm.proximal == "recomputed" and config.algorithm.updates_per_step > 1
        self._takes_turns = config.placement.use_gpu and config.placement.kind == "shared"

    async def run(self) -> None:
        """All steps that are left, with evaluations and checkpoints in between.

        Raises:
            StoppedOnRequest: it was asked to stop; a checkpoint is written.
        """
        with self._stop.deferred():
            try:
                await self._run()
            except StoppedOnRequest:
                if self.steps_done:
                    await self.save()
                raise

    async def _run(self) -> None:
        evaluation, every = self.config.evaluation, self.config.checkpoint.every
        if self._owes_evaluation:
            await self._evaluate()
        while self.steps_done < self.num_steps:
            self._stop.check()
            metrics = await self.step()
            self.steps_done += 1
            self._progress.reached(self.steps_done)
            self.log.log(self.steps_done, metrics)
            self._gauges.set(self.steps_done, metrics)
            last = self.steps_done == self.num_steps
            due = evaluation.final if last else bool(evaluation.every) and self.steps_done % evaluation.every == 0
            self._owes_evaluation = due and bool(self.held_out)
            if self._owes_evaluation:
                await self._evaluate()
            if last or (every and self.steps_done % every == 0):
                await self.save()
        await self.runner.written()

    async def step(self) -> dict[str, float]:
        """One step, and its metrics."""
        self._seconds = {}
        with self._timed("step"):
            with self._timed("rollout"):
                collected = await self._stop.interruptible(self.collector.collect(self.steps_done))
                self.runner.stop_if_broken(collected.groups, f"step {self.steps_done}")
            with self._timed("learner"):
                async with self._gpus_for_learners():
                    learned = await self._learn(list(collected.kept.values()))
            self.collector.settle(collected)
            with self._timed("sync"):
                await self._sync(self.steps_done + 1)
        self._fetch_spans()
        every = self.config.metrics.trajectories_every
        groups = collected.groups
        if every and self.steps_done % every == 0:
            self.log.log_trajectories(self.runner.record(self.config.run.name, self.steps_done + 1, groups))
        return {
            **rollout_metrics(
                [one for group in groups for one in group.scored], {group.sample.id: group.sample for group in groups}
            ),
            **collected.metrics(self.steps_done),
            **learned,
            **self.runner.recovery(),
            **self._progress.metrics(),
            **{f"time/{name}": seconds for name, seconds in self._seconds.items()},
        }

    @recorded("checkpoint")
    async def save(self) -> None:
        """Writes a checkpoint, with the groups that are finished and wait for a step."""
        finished = self.collector.finished()
        written = self._journal.numbers() if self._journal is not None else set()  # of which the checkpoint will know
        state = {"step": self.steps_done, "collector": self.collector.state(), "owes_evaluation": self._owes_evaluation}
        with checkpoint.write_checkpoint(
            self._checkpoints, self.steps_done, state, self.config.checkpoint.keep
        ) as target:
            await asyncio.to_thread(self.learners.save, target)
            await self.runner.keep(target / _FINISHED, list(finished.values()), self.steps_done)
        if self._journal is not None:
            self._journal.forget(written)
        self.log.log_artifact("checkpoint", self._checkpoints / str(self.steps_done))

    async def resume(self, *, serves_other: bool = False) -> None:
        """Goes on from the run folder's newest checkpoint, if there is one, and serves its weights.

        Args:
            serves_other: the engines may have other weights than those that the learners began with.
        """
        found = await asyncio.to_thread(checkpoint.latest, self._checkpoints)
        if found is None:
            if serves_other:
                await self._sync(0)
            return
        await asyncio.to_thread(self.learners.load, found.folder)
        self.steps_done = found.step
        self._owes_evaluation = found.state.get("owes_evaluation", False)
        await self._sync(found.step)
        state = found.state["collector"]
        samples = {sample.id: sample for sample in self.collector.pending(state).values()}
        self.collector.restore(state, await self.runner.kept(found.folder / _FINISHED, samples))
        logger.info("going on from step %d (%s)", found.step, found.folder)

    async def close(self) -> None:
        """Gives up the groups that still run, and ends the timeline."""
        await self.collector.close()
        self._fetch_spans()
        if self.timeline is not None:
            await self.timeline.close()

    def _fetch_spans(self) -> None:
        if self.timeline is not None:
            self.timeline.fetch(self.runner.spans() | self.learners.spans())

    async def _learn(self, groups: Sequence[Group]) -> dict[str, float]:
        """All optimizer steps of this step; metrics are means over them.

        Raises:
            RunStopped: a batch was refused before it could change the weights; it is kept in the run folder.
        """
        try:
            return await self._learn_from(groups)
        except BadBatch as error:
            if self._journal is not None:
                self._journal.forget(
                    number_of(group.scored[0].trajectory.group_id) for group in groups
                )  # or they would come again
            path = (
                self.config.run.folder
                / "failed_batch"
                / trajectory_file.file_name(self.config.run.name, self.steps_done + 1)
            )
            await self.runner.keep(path, groups, self.steps_done + 1)
            raise RunStopped(
                f"step {self.steps_done + 1}: {cause_of(error)} The batch did not change the weights and is in {path}; its samples: "
                f"{', '.join(group.sample.id for group in groups)}"
            ) from error

    async def _learn_from(self, groups: Sequence[Group]) -> dict[str, float]:
        images = {
            image.key: group.images for group in groups for one in group.scored for image in one.trajectory.images
        }
        with span("batch"):
            samples: GroupSamples = [self._training_samples(group) for group in groups]
        if self._rescores:
            samples = await self._with_proximal_logprobs(samples, images)
        versions = {turn.policy_version for group in groups for turn in group.turns}
        batches = self._batches(samples, versions)
        results = [await asyncio.to_thread(self.learners.train, batch, images, self._objective) for batch in batches]
        return {name: sum(result[name] for result in results) / len(results) for name in results[0]}

    async def _with_proximal_logprobs(self, samples: GroupSamples, images: Mapping[str, ray.ObjectRef]) -> GroupSamples:
        """The samples with their log-probabilities under the weights that the step starts from."""
        numbered = [
            (number, sample) for number, members in enumerate(samples) for sample in members if sample.num_loss_tokens
        ]
        batch = self._batch([sample for _, sample in numbered])
        scored = await asyncio.to_thread(self.learners.score, batch, images, self._objective.temperature)
        flat = [
            [sample for rank in one.micro_batches for micro_batch in rank for sample in micro_batch]
            for one in (batch, scored)
        ]
        found = {id(before): after for before, after in zip(*flat, strict=True)}
        return [[found[id(sample)] for sample in members if sample.num_loss_tokens] for members in samples]

    def _batches(self, samples: GroupSamples, versions: Iterable[int]) -> Iterator[Batch]:
        """Mini-batches of whole groups, in a new order for each epoch of the step."""
        algorithm = self.config.algorithm
        per_batch = algorithm.mini_batch_samples or algorithm.samples_per_step
        for epoch in range(algorithm.epochs_per_step):
            order = sorted(
                range(len(samples)),
                key=lambda number: derive_seed(self.config.run.seed, self.steps_done, epoch, number),
            )
            for start in range(0, len(order), per_batch):
                yield self._batch(
                    [sample for number in order[start : start + per_batch] for sample in samples[number]], versions
                )

    @recorded("batch")
    def _batch(self, samples: Sequence[TrainingSample], versions: Iterable[int] = ()) -> Batch:
        learner = self.config.learner
        return make_batch(
            samples,
            num_ranks=learner.num_ranks,
            micro_batch_tokens=learner.micro_batch_tokens,
            policy_versions=versions,
        )

    def _training_samples(self, group: Group) -> list[TrainingSample]:
        algorithm = self.config.algorithm
        advantages = group_advantages(group.rewards, scale_by_std=algorithm.scale_by_std)
        return [
            training_sample(
                one.trajectory,
                advantage,
                image_pad_id=self._image_pad_id,
                share_prompt=self.config.learner.shares_prompts,
            )
            for one, advantage, fate in zip(
                group.scored, advantages, fates(group.scored, "trained", algorithm.mask_overlong), strict=True
            )
            if fate == "trained" and advantage is not None
        ]

    async def _sync(self, version: int) -> None:
        """Brings the engines to the learners' weights."""
        if self.config.transfer != "file":
            engines, workers = await self.runner.rollouts.actors(), self.config.rollout.tensor_parallel_size
            await asyncio.to_thread(self.learners.send, self.config.transfer, version, engines, workers)
            return
        node_ids = self.runner.rollouts.node_ids
        published = await asyncio.to_thread(self.learners.publish, published_folder(self.config), version, node_ids)
        await self.runner.rollouts.update_weights(published)

    @recorded("evaluation")
    async def _evaluate(self) -> None:
        stage, step = self.config.run.name, self.steps_done
        metrics = await self._stop.interruptible(
            evaluate(self.runner, self.held_out, self.config.evaluation, stage=stage, step=step)
        )
        named = {f"evaluation/{name}": value for name, value in metrics.items()}
        self.log.log(step, named)
        self._gauges.set(step, named)
        self._owes_evaluation = False

    @asynccontextmanager
    async def _gpus_for_learners(self) -> AsyncIterator[None]:
        """Where learners and engines share GPUs, the engines sleep meanwhile, and find the memory that they had when they wake."""
        if self._takes_turns:
            await self.runner.rollouts.sleep()
        yield
        if self._takes_turns:
            await asyncio.to_thread(self.learners.free_cache)
            await self.runner.rollouts.wake()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        clock = asyncio.get_running_loop().time  # which may be a simulated one (arm_rl/plan)
        started = clock()
        with span(name):
            yield
        self._seconds[name] = clock() - started
