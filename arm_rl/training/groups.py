"""Groups: several sessions of one sample, run and scored by the actors; for training and for evaluation."""

import asyncio
import itertools
import logging
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.actor import ActorHandle

from actors.archive import Archive
from actors.cluster.reservation import Reservation
from actors.rollout.actor import RolloutActor, RolloutSpec
from actors.rollout.pool import RolloutPool
from actors.scorer import Score, Scorer
from actors.supervision import Deaths, call_with_retries, describe_error, is_lost_with_node, watch
from actors.tool_executor import ToolExecutor
from arm_rl.core import trajectory_file
from arm_rl.core.config import TrainConfig, Transfer
from arm_rl.core.errors import UserError
from arm_rl.core.template import Template
from arm_rl.core.tracing import span
from arm_rl.core.types import Sample, ScoredTrajectory, Turn

logger = logging.getLogger(__name__)


class RunStopped(UserError):
    """The run cannot go on; the message says why and what to look at."""


def group_name(number: int, sample: Sample) -> str:
    """The id of a group that was drawn as this number: part of its sessions' seeds."""
    return f"{number}/{sample.id}"


def number_of(group_id: str) -> int:
    """The number in it."""
    return int(group_id.partition("/")[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The scored trajectories of one sample, and where their images are."""

    sample: Sample
    scored: tuple[ScoredTrajectory, ...]
    images: ray.ObjectRef  # of a dict[key, Image]: pixels never pass through the driver

    @property
    def turns(self) -> Iterator[Turn]:
        """All turns of all trajectories."""
        return (turn for one in self.scored for turn in one.trajectory.turns)

    def age(self, version: int) -> int:
        """How many versions older than this one its oldest token is."""
        return max((version - turn.policy_version for turn in self.turns), default=0)

    @property
    def rewards(self) -> list[float | None]:
        """Of each trajectory."""
        return [one.reward for one in self.scored]


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
        """Works with actors that others start and end; without an archive, nothing can be written or read."""
        self.rollouts = rollouts
        self._beside = {"scorer": scorers, "tools": executors, "archive": [] if archive is None else [archive]}
        self._scorers = itertools.cycle(scorers)
        self._deaths = {
            kind: Deaths(kind, limit=sys.maxsize) for kind in self._beside
        }  # a call that finds none alive says so itself
        watched = [(actor, self._deaths[kind]) for kind, actors in self._beside.items() for actor in actors]
        self._watching = [
            asyncio.create_task(watch(actor, deaths, config.run.stall_seconds)) for actor, deaths in watched
        ]
        self._run = config.run
        self._writing: list[asyncio.Task[None]] = []  # trajectories on their way to disk

    async def run(self, samples: Sequence[Sample], name: str, *, size: int, temperature: float) -> list[Group]:
        """One group of `size` sessions for each sample; `name` is part of their ids and seeds. Raises as `stop_if_broken`."""
        groups = await asyncio.gather(
            *(self.group(sample, f"{name}/{sample.id}", size=size, temperature=temperature) for sample in samples)
        )
        self.stop_if_broken(groups, name)
        return list(groups)

    def record(self, stage: str, step: int, groups: Sequence[Group]) -> Path:
        """Starts writing the groups' trajectories; gives the file."""
        path = self._run.folder / "trajectories" / trajectory_file.file_name(stage, step)
        self._writing.append(asyncio.create_task(self._write(path, groups, stage, step)))
        return path

    async def _write(self, path: Path, groups: Sequence[Group], stage: str, step: int) -> None:
        scored = [one for group in groups for one in group.scored]
        samples = {group.sample.id: group.sample for group in groups}
        images = [group.images for group in groups]
        (archive,) = self._beside["archive"]
        await call_with_retries(archive, lambda: archive.write.remote(path, scored, samples, stage, step, *images))

    async def keep(self, path: Path, groups: Sequence[Group], step: int) -> None:
        """Writes groups whole, and waits for it; `kept` reads them."""
        if groups:
            await self._write(path, groups, self._run.name, step)

    async def kept(self, path: Path, samples: Mapping[str, Sample]) -> dict[int, Group]:
        """Groups that `keep` wrote, by their numbers; none where it wrote none. `samples` are the groups', by id."""
        if not path.is_file():
            return {}
        (archive,) = self._beside["archive"]

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

    async def written(self) -> None:
        """Waits until all trajectories are on disk."""
        for written in await asyncio.gather(*self._writing, return_exceptions=True):
            if isinstance(written, BaseException):
                if not is_lost_with_node(written):
                    raise written
                logger.warning(
                    "trajectories of a step are not on disk: their images went with a node (%s)",
                    describe_error(written),
                )
        self._writing.clear()

    async def group(self, sample: Sample, group_id: str, *, size: int, temperature: float) -> Group:
        """Runs one group of `size` sessions and scores it, while others run."""
        with span("group", track="group", id=group_id):
            ran = await self.rollouts.run_group(
                sample, group_id=group_id, size=size, temperature=temperature, seed=self._run.seed
            )
            scorer = next(self._scorers)
            scores: list[Score] = await call_with_retries(scorer, lambda: scorer.score.remote(sample, ran.reference))
        scored = tuple(
            score.to_scored_trajectory(trajectory) for score, trajectory in zip(scores, ran.trajectories, strict=True)
        )
        return Group(sample=sample, scored=scored, images=ran.images)

    def spans(self) -> dict[str, ray.ObjectRef]:
        """What each actor did since the last call, by its name in the timeline."""
        beside = {
            f"{kind} {number}": actor.spans.remote()
            for kind, actors in self._beside.items()
            for number, actor in enumerate(actors)
        }
        return self.rollouts.spans() | beside

    def recovery(self) -> dict[str, float]:
        """What died since the last call, by kind, and the groups that were run again for it, as metrics."""
        metrics = {
            name: value
            for deaths in (self.rollouts.deaths, *self._deaths.values())
            for name, value in deaths.metrics().items()
        }
        metrics["rollout/rerun_groups"] = float(self.rollouts.num_reruns)
        self.rollouts.num_reruns = 0
        return metrics

    def close(self) -> None:
        """Watches the actors no longer, nor waits for files."""
        for task in (*self._watching, *self._writing):
            task.cancel()

    def stop_if_broken(self, groups: Sequence[Group], name: str) -> None:
        """Ends the run where more sessions broke than the configuration allows.

        Raises:
            RunStopped: with the first one's traceback.
        """
        broken = [one for group in groups for one in group.scored if one.error is not None]
        total = sum(len(group.scored) for group in groups)
        if len(broken) > self._run.max_broken_sessions * total:
            raise RunStopped(
                f"{name}: {len(broken)} of {total} sessions broke, more than run.max_broken_sessions "
                f"({self._run.max_broken_sessions:g}) allows; the first one:\n{broken[0].error}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutService:
    """Rollouts and the tools that their sessions call: runs that differ in what they learn by may use the same ones, one after another."""

    rollouts: RolloutPool
    executors: Sequence[ActorHandle]
    reservation: Reservation  # that they sit in


@asynccontextmanager
async def serving(
    config: TrainConfig,
    template: Template,
    reservation: Reservation,
    actor_class: type[RolloutActor] = RolloutActor,
    *,
    transfer: Transfer = "file",
) -> AsyncIterator[RolloutService]:
    """Starts engines and tool executors; ends them whatever happens. `transfer` is how learners will send weights, if any do."""
    executors = [
        ray.remote(ToolExecutor).options(**reservation.light_options("tools", number)).remote(config.tools)
        for number in range(config.tools.num_executors)
    ]
    rollouts = None
    try:
        spec = RolloutSpec(
            model=config.model,
            template=config.template,
            limits=config.session,
            rollout=config.rollout,
            schemas=template.schemas,
            traits=await executors[0].traits.remote(),
            use_gpu=config.placement.use_gpu,
            can_sleep=config.placement.kind == "shared",
            transfer=transfer,
            seed=config.run.seed,
            stall_seconds=config.run.stall_seconds,
        )
        rollouts = await RolloutPool.start(spec, executors, reservation, actor_class)
        yield RolloutService(rollouts=rollouts, executors=executors, reservation=reservation)
    finally:
        if rollouts is not None:
            await rollouts.close()
        for actor in executors:
            ray.kill(actor)


@asynccontextmanager
async def group_runner(
    config: TrainConfig,
    template: Template,
    engines: RolloutService | Reservation,
    actor_class: type[RolloutActor] = RolloutActor,
    *,
    transfer: Transfer = "file",
) -> AsyncIterator[GroupRunner]:
    """Starts scorers and an archive, and where a place for engines is given, these and tool executors; ends what it started, whatever
    happens."""
    reservation = engines.reservation if isinstance(engines, RolloutService) else engines
    scorers = [
        ray.remote(Scorer)
        .options(**reservation.light_options("scorer", number))
        .remote(config.reward, config.template.tool_format)
        for number in range(config.reward.num_scorers)
    ]
    archive = ray.remote(Archive).options(**reservation.light_options("archive", 0)).remote()
    try:
        async with (
            nullcontext(engines)
            if isinstance(engines, RolloutService)
            else serving(config, template, engines, actor_class, transfer=transfer) as used
        ):
            runner = GroupRunner(config, used.rollouts, scorers, used.executors, archive)
            try:
                yield runner
                await runner.written()
            finally:
                runner.close()
    finally:
        for actor in (*scorers, archive):
            ray.kill(actor)
