"""A slot of the rollout pool: it holds one rollout actor, and starts another one where that actor dies or hangs.

actor dies -> counted -> a new actor -> the newest weights -> serves

By file, the slot loads the newest weights itself. Where learners send weights directly, the new actor serves after the next
synchronisation, which `arm_rl.training.weight_sync` brings forward as soon as a group waits for the slot.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from actors.rollout.node_copies import NodeCopies
from actors.supervision import ActorsLost, Deaths, discard_answers, is_loss, wait_for_end
from actors.weights.files import PublishedWeights, WeightFile
from arm_rl.core.compute_config import Transfer
from arm_rl.core.errors import EngineDied

LOST = (RayActorError, EngineDied)  # the actor is gone, or of no use any more
SECONDS_TO_CLOSE = 60.0  # an actor may hang
SECONDS_TO_PLACE = 600.0  # until an actor's process runs: a node may have to be started for it

T = TypeVar("T")


class NewestWeights:
    """The version of the weights that engines should serve."""

    def __init__(self) -> None:
        self.published: PublishedWeights | None = None  # None: the model as it was loaded
        self.copies = NodeCopies()
        self._changed = asyncio.Event()

    def set(self, published: PublishedWeights) -> None:
        """Replace the version."""
        self.published = published
        self._changed.set()
        self._changed = asyncio.Event()

    async def other_than(self, file: WeightFile) -> PublishedWeights:
        """Return the version, or wait for the next one if the version is this file."""
        while self.published is None or self.published.file == file:
            await self._changed.wait()
        return self.published


class Signals:
    """Events that the slots of a pool share."""

    def __init__(self) -> None:
        self.weights_wanted = asyncio.Event()  # a group waits for an actor to which no weights were sent yet
        self.gpus_free = asyncio.Event()  # clear while learners use the GPUs that they share with the actors
        self.gpus_free.set()


class Slot:
    """A rollout actor, or the one that is being started."""

    def __init__(
        self,
        make: Callable[[], ActorHandle],
        newest: NewestWeights,
        deaths: Deaths,
        signals: Signals,
        stall_seconds: float,
        transfer: Transfer,
    ) -> None:
        """Begin to start an actor; `actor` waits for it.

        Args:
            make: Creates the actor.
            newest: Weights that a new actor loads before it serves.
            deaths: Counts the deaths of all slots together.
            signals: Events that all slots share.
            stall_seconds: Seconds without a sign of life after which an actor counts as dead.
            transfer: Way in which weights come.
        """
        self._make, self._newest, self._deaths, self._signals = make, newest, deaths, signals
        self._stall_seconds, self._transfer = stall_seconds, transfer
        self.num_groups = 0  # groups that run here
        self.node_id = ""
        self._served: WeightFile | None = None  # None: the model as it was loaded
        self._actor: ActorHandle | None = None
        self._serving = asyncio.Event()  # set while the actor has the weights that it should serve
        self._starting: asyncio.Task[ActorHandle] = asyncio.create_task(self._start(has_weights=True))
        self._watching: asyncio.Task[None] | None = None

    async def actor(self) -> ActorHandle:
        """Return the actor; wait for one that is being started.

        Raises:
            ActorsLost: If no actor can be started.
        """
        return await asyncio.shield(self._starting)

    async def server(self) -> ActorHandle:
        """Return the actor once it has the weights that it should serve. Raises as `actor`."""
        while True:
            actor = await self.actor()
            if not self._serving.is_set():
                self._signals.weights_wanted.set()
                await self._serving.wait()
            if actor is self._actor:
                return actor

    @property
    def present(self) -> ActorHandle | None:
        """The actor, or None while it is being started."""
        return self._actor

    @property
    def serves(self) -> bool:
        """Whether there is an actor with the weights that it should serve."""
        return self._serving.is_set()

    def accept(self, actor: ActorHandle) -> None:
        """Let the actor serve, to which learners have sent their weights, unless another one has replaced it."""
        if actor is self._actor:
            self._serving.set()

    async def call(self, call: Callable[[ActorHandle], Awaitable[T]]) -> T:
        """Call the actor; repeat the call on its successor where the actor dies."""
        while True:
            actor = await self.actor()
            try:
                return await call(actor)
            except LOST as error:
                self.replace(actor, error)

    async def serve(self, published: PublishedWeights) -> None:
        """Load the weights into the actor. One that is being started loads the newest by itself, and is not waited for."""
        if self._actor is None and not self._starting.done():
            return

        async def load(actor: ActorHandle) -> None:
            if self._served != published.file:
                await self._load(actor, published)

        await self.call(load)

    async def sample_weights(self, names: Sequence[str]) -> dict[str, tuple[list[int], bytes]] | None:
        """Return blocks of the named weights; None where an actor is being started, or waits for weights."""
        actor = self._actor
        if actor is None or not self.serves:
            return None
        try:
            return await actor.sample_weights.remote(names)
        except LOST as error:
            self.replace(actor, error)
            return None

    def replace(self, actor: ActorHandle, error: BaseException, *, is_death: bool = True) -> None:
        """Start another actor in place of a lost one, unless that was done already.

        Args:
            actor: The lost actor.
            error: Why it was lost.
            is_death: Whether the loss counts; it does not for an actor that has to go because another one died.
        """
        if actor is self._actor:
            self._leave()
            self._starting = asyncio.create_task(self._start_successor(actor, error, is_death))

    async def close(self) -> None:
        """End the actor, its engine and its processes."""
        discard_answers(self._starting)
        actor = self._leave()
        if actor is not None:
            closing = asyncio.ensure_future(actor.close.remote())
            await asyncio.wait([closing], timeout=SECONDS_TO_CLOSE)  # one that has died is closed
            discard_answers(closing)
            ray.kill(actor)

    def _leave(self) -> ActorHandle | None:
        """Empty the slot; return the actor that was in it."""
        actor, self._actor = self._actor, None
        self._serving.clear()
        if self._watching is not None:
            self._watching.cancel()
        return actor

    async def _start(self, *, has_weights: bool) -> ActorHandle:
        """Start an actor; it serves at once if it `has_weights`, once those of a file are loaded."""
        actor = self._make()
        try:
            await self._wait_for_process(actor)
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
        if has_weights:
            self._serving.set()
        self._watching = asyncio.create_task(self._watch(actor))
        return actor

    async def _watch(self, actor: ActorHandle) -> None:
        self.replace(actor, await wait_for_end(actor, self._stall_seconds))

    async def _wait_for_process(self, actor: ActorHandle) -> None:
        """Wait until the actor's process runs.

        Raises:
            ActorsLost: If the process does not start in time: what it needs went with a node.
        """
        process = asyncio.ensure_future(actor.__ray_ready__.remote())
        try:
            if not (await asyncio.wait([process], timeout=SECONDS_TO_PLACE))[0]:
                raise ActorsLost(
                    f"no place for a rollout actor in {SECONDS_TO_PLACE:g} seconds: the cluster has lost what it needs; "
                    "with as much again, or a smaller rollout.num_actors, the same command goes on from the last "
                    "checkpoint"
                )
            await process
        finally:
            discard_answers(process)

    async def _start_successor(self, dead: ActorHandle, error: BaseException, is_death: bool) -> ActorHandle:
        died = time.monotonic()
        ray.kill(dead)  # where only its engine died, or something hangs
        while True:
            if is_death:
                self._deaths.add(error)
            await self._signals.gpus_free.wait()
            try:
                actor = await self._start(has_weights=self._transfer == "file")
            except RayError as another:
                if not is_loss(another):
                    raise
                error, is_death = another, True
                continue
            self._deaths.record_recovery(time.monotonic() - died)
            return actor

    async def _load(self, actor: ActorHandle, published: PublishedWeights) -> None:
        """Load the weights, on another node than the learners' from the node's copy."""
        await actor.load_weights.remote(await self._newest.copies.file(published, self.node_id, actor))
        self._served = published.file
