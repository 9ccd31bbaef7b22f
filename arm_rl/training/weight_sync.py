"""Weight synchronisation: after a step's updates, every engine serves the learners' weights as a new version.

file   learner rank 0 writes one file; engines of its node read it, and engines of other nodes get its bytes
       through Ray's object store
nccl   learner rank 0 broadcasts from its GPU to the engines' GPUs
ipc    each learner rank hands its weights to the engine on the same GPU

Afterwards blocks of some weights are compared (`actors.weights.comparison`): a synchronisation that changed nothing, or the wrong thing,
ends the run.

An engine that replaces a lost one loads a file by itself. With nccl and ipc the learners connect to all engines again at the next
synchronisation, which comes at once where a group waits for the new engine; where an engine is lost in a synchronisation, all
engines start again and get the same weights. The learners keep their state.
"""

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from actors.learner.ranks import LearnerRanks
from actors.rollout.pool import RolloutPool
from actors.weights import comparison
from actors.weights.files import weights_folder
from arm_rl.core.config import RunConfig
from arm_rl.core.errors import EngineDied
from arm_rl.core.seeding import derive_seed
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.tracing import span
from arm_rl.training.group import RunStopped

logger = logging.getLogger(__name__)

T = TypeVar("T")


class WeightSync:
    """Brings the learners' weights to the engines of a run, in the way that `placement.weight_transfer` chooses."""

    def __init__(self, learners: LearnerRanks, rollouts: RolloutPool, config: TrainConfig) -> None:
        self._learners, self._rollouts = learners, rollouts
        self._folder = published_folder(config.run)
        self._transfer, self._workers_per_engine = config.transfer, config.rollout.tensor_parallel_size

    async def sync(self, version: int) -> None:
        """Make every engine serve the learners' current weights as `version`.

        Raises:
            StageLost: If a rank is lost meanwhile.
            ActorsLost: If engine after engine is lost.
            RunStopped: If an engine has other weights than the learners afterwards.
        """
        if self._transfer == "file":
            await self._by_file(version)
        else:
            await self._directly(version)
        with span("compare"):
            await self._compare(version)

    async def sync_while(self, version: int, rollouts: Coroutine[Any, Any, T]) -> T:
        """Await rollouts; synchronise whenever they wait for an engine that replaces a lost one. Raises as `sync`.

        Args:
            version: Version of the learners' weights, which must not change meanwhile.
            rollouts: The work to await.
        """
        if self._transfer == "file":
            return await rollouts
        working = asyncio.ensure_future(rollouts)
        try:
            while not working.done():
                wanted = asyncio.ensure_future(self._rollouts.weights_wanted())
                await asyncio.wait([working, wanted], return_when=asyncio.FIRST_COMPLETED)
                wanted.cancel()
                if not working.done():
                    await self.sync(version)
            return await working
        finally:
            working.cancel()
            await asyncio.wait([working])

    async def _by_file(self, version: int) -> None:
        node_ids = self._rollouts.node_ids
        published = await asyncio.to_thread(self._learners.publish, self._folder, version, node_ids)
        await self._rollouts.serve(published)

    async def _directly(self, version: int) -> None:
        while True:
            engines = await self._rollouts.actors()
            try:
                await asyncio.to_thread(self._learners.send, self._transfer, version, engines, self._workers_per_engine)
            except EngineDied as error:
                logger.warning(
                    "version %d of the weights is sent again, after all engines have started: %s", version, error
                )
                self._rollouts.restart(engines, error)
            else:
                self._rollouts.accept(engines)
                return

    async def _compare(self, version: int) -> None:
        """Compare samples of the weights of all engines with the learners'."""
        expected = await asyncio.to_thread(self._learners.sample_weights)
        for number, found in (await self._rollouts.sample_weights(list(expected))).items():
            if (difference := comparison.difference(expected, found)) is not None:
                raise RunStopped(
                    f"engine {number} does not serve the learners' weights after it was sent version {version} "
                    f"(placement.weight_transfer: {self._transfer}): {difference}"
                )


def published_folder(run: RunConfig) -> Path:
    """Return the folder of a run's weights for its engines; it is the same whenever the run is started again."""
    return weights_folder(f"{run.name}-{derive_seed(run.folder.resolve())}")
