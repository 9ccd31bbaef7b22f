"""The rollout actors of a run, as one: where one dies or hangs, another is started in its place, and what it ran is run again.

group -> the least busy place -> its actor dies? -> a new actor, with the newest weights; the group, once more, wherever there is room
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from actors.cluster.reservation import Reservation
from actors.rollout.actor import RolloutActor, RolloutSpec
from actors.rollout.engine_settings import engine_environment
from actors.supervision import ActorsLost, Deaths, StageLost, describe_error, discard_answers, wait_for_end
from actors.weights.files import Published, WeightFile
from arm_rl.core.config import Transfer
from arm_rl.core.errors import EngineDied
from arm_rl.core.types import Sample, Trajectory

LOST = (RayActorError, EngineDied)  # the actor is gone, or of no use any more
MAX_DEATHS = 4  # of all actors together with no group finished in between
MAX_RUNS = 8  # of one group
SECONDS_TO_CLOSE = 60.0  # an actor may hang
SECONDS_TO_PLACE = 600.0  # until an actor's process runs: a node may have to be started for it

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutResult:
    """A group whose sessions are over."""

    trajectories: list[Trajectory]
    reference: ray.ObjectRef  # of the same: who hands them on sends this, and nothing is packed again
    images: ray.ObjectRef  # of a dict[key, Image], which stays where it is


class _Newest:
    """The version of the weights that engines should serve."""

    def __init__(self) -> None:
        self.published: Published | None = None  # None: the model as it was loaded
        self._changed = asyncio.Event()

    def set(self, published: Published) -> None:
        self.published = published
        self._changed.set()
        self._changed = asyncio.Event()

    async def other_than(self, file: WeightFile) -> Published:
        """Waits for another one, if need be."""
        while self.published is None or self.published.file == file:
            await self._changed.wait()
        return self.published


class _Place:
    """Where an actor is, or will be."""

    def __init__(
        self, make: Callable[[], ActorHandle], newest: _Newest, deaths: Deaths, stall_seconds: float, transfer: Transfer
    ) -> None:
        self._make, self._newest, self._deaths = make, newest, deaths
        self._stall_seconds, self._transfer = stall_seconds, transfer
        self.num_groups = 0  # that run here
        self.node_id = ""
        self._served: WeightFile | None = None  # None: the model as it was loaded
        self._actor: ActorHandle | None = None
        self._coming: asyncio.Task[ActorHandle] = asyncio.create_task(self._started())
        self._watching: asyncio.Task[None] | None = None  # the actor

    async def actor(self) -> ActorHandle:
        """The one that lives here; waits for one that is being started.

        Raises:
            ActorsLost: there will be none.
        """
        return await asyncio.shield(self._coming)

    @property
    def present(self) -> ActorHandle | None:
        """The one that lives here, if nobody has to wait for it."""
        return self._actor

    async def on(self, call: Callable[[ActorHandle], Awaitable[T]]) -> T:
        """Calls the actor; where it dies of it, its successor."""
        while True:
            actor = await self.actor()
            try:
                return await call(actor)
            except LOST as error:
                self.lost(actor, error)

    async def update(self, published: Published) -> None:
        """Brings the actor to a version. One that is being started takes the newest by itself: nobody waits for it."""
        if self._actor is None and not self._coming.done():
            return

        async def load(actor: ActorHandle) -> None:
            if self._served != published.file:
                await self._load(actor, published)

        await self.on(load)

    def lost(self, actor: ActorHandle, error: BaseException) -> None:
        """Starts another one, if that has not been done yet."""
        if actor is self._actor:
            self._leave()
            self._coming = asyncio.create_task(self._replaced(actor, error))

    async def close(self) -> None:
        """Ends the actor, its engine and its processes."""
        discard_answers(self._coming)
        actor = self._leave()
        if actor is not None:
            closing = asyncio.ensure_future(actor.close.remote())
            await asyncio.wait([closing], timeout=SECONDS_TO_CLOSE)  # one that has died is closed
            discard_answers(closing)
            ray.kill(actor)

    def _leave(self) -> ActorHandle | None:
        """Nobody lives here any more; gives the one who did."""
        actor, self._actor = self._actor, None
        if self._watching is not None:
            self._watching.cancel()
        return actor

    async def _started(self) -> ActorHandle:
        actor = self._make()
        try:
            await self._placed(actor)
            self.node_id, self._served = await actor.start.remote(), None
            while (published := self._newest.published) is not None and published.file != self._served:
                try:
                    await self._load(actor, published)
                except FileNotFoundError:  # the learners are writing the next version
                    await self._newest.other_than(published.file)
        except BaseException:
            ray.kill(actor)
            raise
        self._actor = actor
        self._watching = asyncio.create_task(self._watched(actor))
        return actor

    async def _watched(self, actor: ActorHandle) -> None:
        self.lost(actor, await wait_for_end(actor, self._stall_seconds))

    async def _placed(self, actor: ActorHandle) -> None:
        """Waits until its process runs.

        Raises:
            ActorsLost: it will not: what it needs went with a node.
        """
        process = asyncio.ensure_future(actor.__ray_ready__.remote())
        try:
            if not (await asyncio.wait([process], timeout=SECONDS_TO_PLACE))[0]:
                raise ActorsLost(
                    f"no place for a rollout actor in {SECONDS_TO_PLACE:g} seconds: the cluster has lost what it needs; "
                    "with as much again, or a smaller rollout.num_actors, the same command goes on from the last checkpoint"
                )
            await process
        finally:
            discard_answers(process)

    async def _replaced(self, dead: ActorHandle, error: RayError | BaseException) -> ActorHandle:
        died = time.monotonic()
        ray.kill(dead)  # where only its engine died, or something hangs
        if self._transfer != "file":
            raise StageLost(
                f"an engine was lost, and with it the group through which weights come: {describe_error(error)}"
            )
        while True:
            self._deaths.add(error)
            try:
                actor = await self._started()
            except RayError as another:
                error = another
                continue
            self._deaths.record_recovery(time.monotonic() - died)
            return actor

    async def _load(self, actor: ActorHandle, published: Published) -> None:
        """The bytes travel only to engines on other nodes."""
        await actor.update_weights.remote(published.file, None if self.node_id == published.node_id else published.data)
        self._served = published.file


class RolloutPool:
    """All rollout actors."""

    def __init__(
        self, makers: Sequence[Callable[[], ActorHandle]], stall_seconds: float, transfer: Transfer = "file"
    ) -> None:
        """Begins to start an actor in each place; `start` waits for them.

        Args:
            stall_seconds: without a sign of life, after which an actor counts as dead.
            transfer: how weights come; an actor that is lost is replaced only where they come by file, else the stage is.
        """
        self.deaths = Deaths("rollout", MAX_DEATHS)
        self.num_reruns = 0  # of groups, since it was last set to 0
        self._newest = _Newest()
        self._places = [_Place(make, self._newest, self.deaths, stall_seconds, transfer) for make in makers]

    @classmethod
    async def start(
        cls,
        spec: RolloutSpec,
        executors: Sequence[ActorHandle],
        reservation: Reservation,
        actor_class: type[RolloutActor] = RolloutActor,
    ) -> "RolloutPool":
        """Starts the engines, all at once."""
        environment = {"env_vars": engine_environment(spec.use_gpu, spec.transfer)}

        def maker(number: int) -> Callable[[], ActorHandle]:
            def make() -> ActorHandle:
                options = {
                    "max_concurrency": 100_000,  # sessions are limited inside, by rollout.max_concurrent_sessions
                    "runtime_env": environment,
                    **reservation.rollout_options(number),
                }
                return ray.remote(actor_class).options(**options).remote(spec, executors, number)

            return make

        group = cls([maker(number) for number in range(spec.rollout.num_actors)], spec.stall_seconds, spec.transfer)
        try:
            await asyncio.gather(*(place.actor() for place in group._places))
        except BaseException:
            await group.close()
            raise
        return group

    async def run_group(
        self, sample: Sample, *, group_id: str, size: int, temperature: float, seed: int
    ) -> RolloutResult:
        """Runs a group on the least busy engine; once more where the engine is lost.

        Raises:
            ActorsLost: engine after engine.
            StageLost: one, where none can be replaced.
        """
        error: BaseException | None = None
        for _ in range(MAX_RUNS):
            place = min(self._places, key=lambda place: (place.present is None, place.num_groups))
            place.num_groups += 1
            try:
                actor = await place.actor()
            except BaseException:
                place.num_groups -= 1
                raise
            try:
                reference, images = actor.run_group.remote(
                    sample, group_id=group_id, size=size, temperature=temperature, seed=seed
                )
                ran = RolloutResult(trajectories=await reference, reference=reference, images=images)
                self.deaths.reset()
                return ran
            except LOST as lost:
                place.lost(actor, lost)
                self.num_reruns += 1
                error = lost
            finally:
                place.num_groups -= 1
        assert error is not None
        raise ActorsLost(
            f"{describe_error(error)}: sample {sample.id!r} was run {MAX_RUNS} times, and each time its rollout actor died"
        )

    @property
    def node_ids(self) -> tuple[str, ...]:
        """The node of each engine."""
        return tuple(place.node_id for place in self._places)

    async def update_weights(self, published: Published) -> None:
        """Brings every engine to the new version."""
        self._newest.set(published)
        await asyncio.gather(*(place.update(published) for place in self._places))

    async def actors(self) -> list[ActorHandle]:
        """All of them, for learners that send weights directly. Raises as `run_group`."""
        return list(await asyncio.gather(*(place.actor() for place in self._places)))

    def spans(self) -> dict[str, ray.ObjectRef]:
        """What each actor did since the last call, by its name in the timeline."""
        present = {number: place.present for number, place in enumerate(self._places)}
        return {f"rollout {number}": actor.spans.remote() for number, actor in present.items() if actor is not None}

    async def sleep(self) -> None:
        """Frees the GPUs."""
        await asyncio.gather(*(place.on(lambda actor: actor.sleep.remote()) for place in self._places))

    async def wake(self) -> None:
        """Takes the GPUs again."""
        await asyncio.gather(*(place.on(lambda actor: actor.wake.remote()) for place in self._places))

    async def close(self) -> None:
        """Ends the engines, their processes and the actors."""
        await asyncio.gather(*(place.close() for place in self._places), return_exceptions=True)
