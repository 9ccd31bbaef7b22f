"""The driver of a GRPO stage: it owns the loop, the data cursor, the checkpoints and the metrics.

One step:

    samples -> rollouts (groups of trajectories) -> scorers -> select -> advantages -> batches -> learners -> new weights -> rollouts

With `algorithm.max_staleness` above 0, rollouts continue while the learners train (`collector` says how far ahead). The driver holds
no mathematics and no pixels: a group carries a reference to its images, which the learners resolve.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from actors.gauges import Gauges
from actors.learner.ranks import LearnerRanks
from actors.supervision import cause_of
from arm_rl.core import trajectory_file
from arm_rl.core.errors import BadBatch
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.tracing import recorded, span
from arm_rl.core.types import Sample
from arm_rl.data.samples import Cursor
from arm_rl.run import checkpoint
from arm_rl.run.metrics import rollout_metrics
from arm_rl.run.metrics_log import MetricsLog
from arm_rl.run.timeline import Timeline
from arm_rl.training.collector import Collector, StepGroups
from arm_rl.training.evaluation import evaluate
from arm_rl.training.finished_groups import Journal
from arm_rl.training.graceful_stop import StoppedOnRequest, StopRequest
from arm_rl.training.group import RunStopped
from arm_rl.training.group_runner import GroupRunner
from arm_rl.training.restarts import StageProgress
from arm_rl.training.select import Selection
from arm_rl.training.updates import Updates
from arm_rl.training.weight_sync import WeightSync

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FINISHED = "groups.parquet"  # in a checkpoint: groups that wait for a step


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
        self._checkpoints = config.run.folder / "checkpoints"
        # A synchronous run needs no journal: what it does again after a kill, it does with the same bits.
        self._journal = Journal(runner, self._checkpoints) if config.algorithm.max_staleness else None
        self.collector = Collector(config, self._journal or runner, cursor)
        self._updates = Updates(config, learners, image_pad_id)
        self._weights = WeightSync(learners, runner.rollouts, config)
        self.num_steps = num_steps
        self.log, self.timeline = log, timeline
        self._progress = progress or StageProgress()
        self._stop = stop or StopRequest()
        self._gauges = Gauges(config.run.name)
        self._owes_evaluation = config.evaluation.initial
        self.steps_done = 0
        self._seconds: dict[str, float] = {}  # of the phases of this step
        self._takes_turns = config.placement.takes_turns

    async def run(self) -> None:
        """Run all steps that are left, with evaluations and checkpoints in between.

        Raises:
            StoppedOnRequest: If the run was asked to stop; a checkpoint is written.
            RunStopped: If the run cannot continue; a checkpoint of the last finished step is written.
        """
        with self._stop.deferred():
            try:
                await self._run()
            except (StoppedOnRequest, RunStopped):
                if self.steps_done and not self._updates.num_applied:  # else the weights are between two steps
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
        """Run one step; return its metrics."""
        self._seconds = {}
        with self._timed("step"):
            with self._timed("rollout"):
                groups = await self._rollouts(self.collector.collect(self.steps_done))
            try:
                self.runner.stop_if_broken([one.group for one in groups.selections], f"step {self.steps_done}")
                with self._timed("learner"):
                    async with self._gpus_for_learners():
                        learned = await self.learn(groups.trained)
            except RunStopped:
                self.collector.put_back(groups)
                raise
            self.collector.settle(groups)
            with self._timed("sync"):
                await self._weights.sync(self.steps_done + 1)
        self._fetch_spans()
        return self._step_metrics(groups) | learned

    async def _rollouts(self, work: Coroutine[Any, Any, T]) -> T:
        """Await rollouts under the learners' present weights, unless the run is asked to stop."""
        return await self._stop.interruptible(self._weights.sync_while(self.steps_done, work))

    async def learn(self, selections: Sequence[Selection]) -> dict[str, float]:
        """Run all optimizer steps of this step; return the means of their metrics.

        Raises:
            RunStopped: If a batch was refused before it could change the weights; it is kept in the run folder.
        """
        try:
            return await self._updates.run(self.steps_done, selections)
        except BadBatch as error:
            if self._journal is not None:
                self._journal.forget(one.number for one in selections)  # or they would come again
            file = trajectory_file.file_name(self.config.run.name, self.steps_done + 1)
            path = self.config.run.folder / "failed_batch" / file
            await self.runner.save_groups(path, [one.group for one in selections], self.steps_done + 1)
            raise RunStopped(
                f"step {self.steps_done + 1}: {cause_of(error)} The batch did not change the weights and is in {path}; "
                f"its samples: {', '.join(one.group.sample.id for one in selections)}"
            ) from error

    def _step_metrics(self, groups: StepGroups) -> dict[str, float]:
        """Write the step's trajectories where they are due; return its metrics but for the learners'."""
        found = [one.group for one in groups.selections]
        every = self.config.metrics.trajectories_every
        if every and self.steps_done % every == 0:
            self.log.log_trajectories(self.runner.record(self.config.run.name, self.steps_done + 1, found))
        samples = {group.sample.id: group.sample for group in found}
        return {
            **rollout_metrics([one for group in found for one in group.scored], samples),
            **groups.metrics(self.steps_done),
            **self.runner.recovery(),
            **self._progress.metrics(),
            **{f"time/{name}": seconds for name, seconds in self._seconds.items()},
        }

    @recorded("checkpoint")
    async def save(self) -> None:
        """Write a checkpoint, with the groups that are finished and wait for a step."""
        finished = self.collector.finished()
        known = self._journal.numbers() if self._journal is not None else set()  # groups that the checkpoint covers
        state = {
            "step": self.steps_done,
            "collector": self.collector.state(),
            "owes_evaluation": self._owes_evaluation,
        }
        with checkpoint.write_checkpoint(
            self._checkpoints, self.steps_done, state, self.config.checkpoint.keep
        ) as target:
            await asyncio.to_thread(self.learners.save, target)
            await self.runner.save_groups(target / _FINISHED, list(finished.values()), self.steps_done)
        if self._journal is not None:
            self._journal.forget(known)
        self.log.log_artifact("checkpoint", self._checkpoints / str(self.steps_done))

    async def resume(self, *, serves_other: bool = False) -> None:
        """Resume from the run folder's newest checkpoint, if there is one, and serve its weights.

        Args:
            serves_other: Whether the engines may have other weights than those that the learners began with.
        """
        found = await asyncio.to_thread(checkpoint.latest, self._checkpoints)
        if found is None:
            if serves_other:
                await self._weights.sync(0)
            return
        await asyncio.to_thread(self.learners.load, found.folder)
        self.steps_done = found.step
        self._owes_evaluation = found.state.get("owes_evaluation", False)
        await self._weights.sync(found.step)
        state = found.state["collector"]
        samples = {sample.id: sample for sample in self.collector.pending(state).values()}
        self.collector.restore(state, await self.runner.load_groups(found.folder / _FINISHED, samples))
        logger.info("going on from step %d (%s)", found.step, found.folder)

    async def close(self) -> None:
        """Cancel the groups that still run, and end the timeline."""
        await self.collector.close()
        self._fetch_spans()
        if self.timeline is not None:
            await self.timeline.close()

    @recorded("evaluation")
    async def _evaluate(self) -> None:
        stage, step = self.config.run.name, self.steps_done
        evaluating = evaluate(self.runner, self.held_out, self.config.evaluation, stage=stage, step=step)
        metrics = await self._rollouts(evaluating)
        named = {f"evaluation/{name}": value for name, value in metrics.items()}
        self.log.log(step, named)
        self._gauges.set(step, named)
        self._owes_evaluation = False

    def _fetch_spans(self) -> None:
        if self.timeline is not None:
            self.timeline.fetch(self.runner.spans() | self.learners.spans())

    @asynccontextmanager
    async def _gpus_for_learners(self) -> AsyncIterator[None]:
        """Let the engines sleep where learners share their GPUs; they find the same memory free when they wake."""
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
