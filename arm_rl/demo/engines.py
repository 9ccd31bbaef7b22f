"""Engines that several phases of a demo use one after another: a start costs more than most phases' work."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from actors.cluster.reservation import reserve
from actors.weights.files import PublishedWeights, WeightFile
from arm_rl.core.stage_config import TrainConfig
from arm_rl.training.inputs import read_inputs
from arm_rl.training.startup import RolloutService, rollout_service

T = TypeVar("T")


class SharedEngines:
    """Engines with an event loop of their own, started for the first phase that needs them."""

    def __init__(self) -> None:
        self._loop = asyncio.Runner()
        self._started = AsyncExitStack()
        self._service: RolloutService | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end on the engines' event loop."""
        return self._loop.run(work)

    def get(self, config: TrainConfig) -> RolloutService:
        """Return the engines, with whatever weights they have; start them with the configured model if there are none.

        Args:
            config: Configuration of a phase; all phases have models of one shape.
        """
        if self._service is None:
            self._service = self.run(self._start(config))
        return self._service

    def serve(self, config: TrainConfig) -> RolloutService:
        """Return the engines after they have loaded the configured model: one safetensors file, on the engines' own node."""
        if self._service is None:
            return self.get(config)
        file = WeightFile(path=Path(config.model.path).resolve() / "model.safetensors", version=0)
        rollouts = self._service.rollouts
        self.run(rollouts.serve(PublishedWeights(file=file, node_id=rollouts.node_ids[0], data=None)))
        return self._service

    def close(self) -> None:
        """End the engines, if any were started."""
        self.run(self._started.aclose())
        self._service = None
        self._loop.close()

    async def _start(self, config: TrainConfig) -> RolloutService:
        reservation = await self._started.enter_async_context(reserve("demo", config.placement, 0, config.rollout))
        template = read_inputs(config).template
        return await self._started.enter_async_context(rollout_service(config, template, reservation))
