"""The rollout actors of a run: each group goes to the least busy engine, and once more to another one where the engine is lost."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle

from actors.cluster.reservation import Reservation
from actors.rollout.actor import RolloutActor, RolloutSpec
from actors.rollout.engine_settings import engine_environment
from actors.rollout.slot import LOST, NewestWeights, Signals, Slot
from actors.supervision import ActorsLost, Deaths, describe_error
from actors.weights.files import PublishedWeights
from arm_rl.core.compute_config import Transfer
from arm_rl.core.types import Sample, Trajectory

MAX_DEATHS = 4  # of all actors together with no group finished in between
MAX_RUNS = 8  # of one group


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutResult:
    """A group whose sessions are over."""

    trajectories: list[Trajectory]
    reference: ray.ObjectRef  # of the same list: passing it on pickles nothing again
    images: ray.ObjectRef  # of a dict[key, Image], which stays on its node


class RolloutPool:
    """All rollout actors of a run."""

    def __init__(
        self, makers: Sequence[Callable[[], ActorHandle]], stall_seconds: float, transfer: Transfer = "file"
    ) -> None:
        """Begin to start an actor in each slot; `start` waits for them.

        Args:
            makers: Create the actors, one a slot.
            stall_seconds: Seconds without a sign of life after which an actor counts as dead.
            transfer: Way in which weights come.
        """
        self.deaths = Deaths("rollout", MAX_DEATHS)
        self.num_reruns = 0  # groups that were run again, since this was last set to 0
        self._newest, self._signals = NewestWeights(), Signals()
        self._slots = [Slot(make, self._newest, self.deaths, self._signals, stall_seconds, transfer) for make in makers]

    @classmethod
    async def start(
        cls,
        spec: RolloutSpec,
        executors: Sequence[ActorHandle],
        reservation: Reservation,
        actor_class: type[RolloutActor] = RolloutActor,
    ) -> "RolloutPool":
        """Start all engines at once, and wait until they serve."""
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

        pool = cls([maker(number) for number in range(spec.rollout.num_actors)], spec.stall_seconds, spec.transfer)
        try:
            await pool.actors()
        except BaseException:
            await pool.close()
            raise
        return pool

    async def run_group(
        self, sample: Sample, *, group_id: str, size: int, temperature: float, seed: int
    ) -> RolloutResult:
        """Run a group's sessions on the least busy engine.

        Args:
            sample: What to judge.
            group_id: Part of the sessions' seeds.
            size: Number of sessions.
            temperature: Sampling temperature.
            seed: Seed of the run.

        Raises:
            ActorsLost: If engine after engine is lost.
        """
        error: BaseException | None = None
        for _ in range(MAX_RUNS):
            slot = min(self._slots, key=lambda slot: (not slot.serves, slot.num_groups))
            slot.num_groups += 1
            try:
                actor = await slot.server()
                try:
                    reference, images = actor.run_group.remote(
                        sample, group_id=group_id, size=size, temperature=temperature, seed=seed
                    )
                    result = RolloutResult(trajectories=await reference, reference=reference, images=images)
                    self.deaths.reset()
                    return result
                except LOST as lost:
                    slot.replace(actor, lost)
                    self.num_reruns += 1
                    error = lost
            finally:
                slot.num_groups -= 1
        assert error is not None
        raise ActorsLost(
            f"{describe_error(error)}: sample {sample.id!r} was run {MAX_RUNS} times, and each time its rollout actor died"
        )

    async def serve(self, published: PublishedWeights) -> None:
        """Make every engine serve a new version of the weights."""
        self._newest.set(published)
        await asyncio.gather(*(slot.serve(published) for slot in self._slots))

    async def sample_weights(self, names: Sequence[str]) -> dict[int, dict[str, tuple[list[int], bytes]]]:
        """Return blocks of the named weights of each engine that serves, by the engine's number."""
        found = await asyncio.gather(*(slot.sample_weights(names) for slot in self._slots))
        return {number: blocks for number, blocks in enumerate(found) if blocks is not None}

    @property
    def node_ids(self) -> tuple[str, ...]:
        """The node of each engine."""
        return tuple(slot.node_id for slot in self._slots)

    async def actors(self) -> list[ActorHandle]:
        """Return all actors, for learners that send weights directly. Raises as `run_group`."""
        return list(await asyncio.gather(*(slot.actor() for slot in self._slots)))

    def accept(self, actors: Sequence[ActorHandle]) -> None:
        """Let the actors serve that learners have sent their weights to, in the order of `actors`."""
        for slot, actor in zip(self._slots, actors, strict=True):
            slot.accept(actor)
        if all(slot.serves for slot in self._slots):
            self._signals.weights_wanted.clear()

    def restart(self, actors: Sequence[ActorHandle], error: BaseException) -> None:
        """Replace all actors, one of which was lost while weights were sent: the others' may be mixed."""
        is_death = all(slot.present is actor for slot, actor in zip(self._slots, actors, strict=True))
        for slot, actor in zip(self._slots, actors, strict=True):
            slot.replace(actor, error, is_death=is_death)
            is_death = False  # one loss counts once, wherever it is noticed

    async def weights_wanted(self) -> None:
        """Wait until a group waits for an actor to which the learners have not sent their weights yet."""
        await self._signals.weights_wanted.wait()

    def spans(self) -> dict[str, ray.ObjectRef]:
        """Fetch each actor's spans since the last call, by the actor's name in the timeline."""
        present = {number: slot.present for number, slot in enumerate(self._slots)}
        return {f"rollout {number}": actor.spans.remote() for number, actor in present.items() if actor is not None}

    async def sleep(self) -> None:
        """Free the GPUs for the learners; the engines serve again after `wake` and an update of the weights.

        An engine that is lost meanwhile is started again when the GPUs are free.
        """
        await asyncio.gather(*(slot.call(lambda actor: actor.sleep.remote()) for slot in self._slots))
        self._signals.gpus_free.clear()

    async def wake(self) -> None:
        """Take the GPUs back for the weights; the end of the next update takes the rest."""
        self._signals.gpus_free.set()
        await asyncio.gather(*(slot.call(lambda actor: actor.wake.remote()) for slot in self._slots))

    async def close(self) -> None:
        """End the engines, their processes and the actors."""
        await asyncio.gather(*(slot.close() for slot in self._slots), return_exceptions=True)
