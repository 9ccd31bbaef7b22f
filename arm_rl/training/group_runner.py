"""Runs and scores GRPO groups through the actors, for training and for evaluation, and writes their trajectories."""

import asyncio
import itertools
import logging
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray
from ray.actor import ActorHandle

from actors.rollout.pool import RolloutPool
from actors.scorer import Score
from actors.supervision import Deaths, call_with_retries, describe_error, is_lost_with_node, watch
from arm_rl.core import trajectory_file
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.tracing import span
from arm_rl.core.types import Sample, ScoredTrajectory
from arm_rl.training.group import Group, RunStopped, number_of

logger = logging.getLogger(__name__)


class GroupRunner:
    """Runs and scores groups. A group is scored as soon as its last session ends, while others run."""

    def __init__(
        self,
        config: TrainConfig,
        rollouts: RolloutPool,
        scorers: Sequence[ActorHandle],
        executors: Sequence[ActorHandle] = (),
        archive: ActorHandle | None = None,
    ) -> None:
        """Work with actors that others start and end; without an archive, nothing can be written or read."""
        self.rollouts = rollouts
        self._helpers = {"scorer": scorers, "tools": executors, "archive": [] if archive is None else [archive]}
        self._scorers = itertools.cycle(scorers)
        # No limit: a call that finds no actor alive fails by itself.
        self._deaths = {kind: Deaths(kind, limit=sys.maxsize) for kind in self._helpers}
        watched = [(actor, self._deaths[kind]) for kind, actors in self._helpers.items() for actor in actors]
        self._watching = [
            asyncio.create_task(watch(actor, deaths, config.run.stall_seconds)) for actor, deaths in watched
        ]
        self._run = config.run
        self._writing: list[asyncio.Task[None]] = []  # trajectories on their way to disk

    async def run_group(self, sample: Sample, group_id: str, *, size: int, temperature: float) -> Group:
        """Run one group of `size` sessions and score it."""
        with span("group", track="group", id=group_id):
            result = await self.rollouts.run_group(
                sample, group_id=group_id, size=size, temperature=temperature, seed=self._run.seed
            )
            scorer = next(self._scorers)
            scores: list[Score] = await call_with_retries(scorer, lambda: scorer.score.remote(sample, result.reference))
        scored = tuple(
            score.to_scored_trajectory(trajectory)
            for score, trajectory in zip(scores, result.trajectories, strict=True)
        )
        return Group(sample=sample, scored=scored, images=result.images)

    async def run_all(self, samples: Sequence[Sample], name: str, *, size: int, temperature: float) -> list[Group]:
        """Run one group of `size` sessions for each sample; `name` is part of their ids and seeds. Raises as `stop_if_broken`."""
        groups = await asyncio.gather(
            *(self.run_group(sample, f"{name}/{sample.id}", size=size, temperature=temperature) for sample in samples)
        )
        self.stop_if_broken(groups, name)
        return list(groups)

    def stop_if_broken(self, groups: Sequence[Group], name: str) -> None:
        """End the run where more sessions broke than the configuration allows.

        Raises:
            RunStopped: With the first broken session's traceback.
        """
        broken = [one for group in groups for one in group.scored if one.error is not None]
        total = sum(len(group.scored) for group in groups)
        if len(broken) > self._run.max_broken_sessions * total:
            raise RunStopped(
                f"{name}: {len(broken)} of {total} sessions broke, more than run.max_broken_sessions "
                f"({self._run.max_broken_sessions:g}) allows; the first one:\n{broken[0].error}"
            )

    def record(self, stage: str, step: int, groups: Sequence[Group]) -> Path:
        """Start to write the groups' trajectories; return the file's path."""
        path = self._run.folder / "trajectories" / trajectory_file.file_name(stage, step)
        self._writing.append(asyncio.create_task(self._write(path, groups, stage, step)))
        return path

    async def written(self) -> None:
        """Wait until all recorded trajectories are on disk."""
        for written in await asyncio.gather(*self._writing, return_exceptions=True):
            if isinstance(written, BaseException):
                if not is_lost_with_node(written):
                    raise written
                logger.warning(
                    "trajectories of a step are not on disk: their images went with a node (%s)",
                    describe_error(written),
                )
        self._writing.clear()

    async def save_groups(self, path: Path, groups: Sequence[Group], step: int) -> None:
        """Write complete groups to a file, which `load_groups` reads, and wait for it."""
        if groups:
            await self._write(path, groups, self._run.name, step)

    async def load_groups(self, path: Path, samples: Mapping[str, Sample]) -> dict[int, Group]:
        """Read the groups that `save_groups` wrote, by number; none if there is no file. `samples` are the groups', by id."""
        if not path.is_file():
            return {}
        (archive,) = self._helpers["archive"]

        async def read() -> tuple[list[ScoredTrajectory], ray.ObjectRef]:
            scored, images = archive.read.remote(path)
            return await scored, images

        scored, images = await call_with_retries(archive, read)
        groups: defaultdict[str, list[ScoredTrajectory]] = defaultdict(list)
        for one in scored:
            groups[one.trajectory.group_id].append(one)
        return {
            number_of(group_id): Group(
                sample=samples[members[0].trajectory.sample_id], scored=tuple(members), images=images
            )
            for group_id, members in groups.items()
        }

    async def _write(self, path: Path, groups: Sequence[Group], stage: str, step: int) -> None:
        scored = [one for group in groups for one in group.scored]
        samples = {group.sample.id: group.sample for group in groups}
        images = [group.images for group in groups]
        (archive,) = self._helpers["archive"]
        await call_with_retries(archive, lambda: archive.write.remote(path, scored, samples, stage, step, *images))

    def spans(self) -> dict[str, ray.ObjectRef]:
        """Fetch each actor's spans since the last call, by the actor's name in the timeline."""
        helpers = {
            f"{kind} {number}": actor.spans.remote()
            for kind, actors in self._helpers.items()
            for number, actor in enumerate(actors)
        }
        return self.rollouts.spans() | helpers

    def recovery(self) -> dict[str, float]:
        """Return the deaths since the last call by kind, and the number of groups that were run again, as metrics."""
        metrics = {
            name: value
            for deaths in (self.rollouts.deaths, *self._deaths.values())
            for name, value in deaths.metrics().items()
        }
        metrics["rollout/rerun_groups"] = float(self.rollouts.num_reruns)
        self.rollouts.num_reruns = 0
        return metrics

    def close(self) -> None:
        """Stop watching the actors and waiting for files."""
        for task in (*self._watching, *self._writing):
            task.cancel()
