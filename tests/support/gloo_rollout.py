"""A rollout actor whose engine receives weights through gloo, and which dies when a file says so."""

import os
import signal
from pathlib import Path
from typing import Any

import ray

from actors.rollout import engine_settings
from actors.rollout.actor import RolloutActor


class GlooRollout(RolloutActor):
    """Dies in a method for each file `METHOD may die NUMBER` in the folder of the model's folder."""

    def __init__(self, spec, executors, number) -> None:
        engine_settings.WORKER_EXTENSION = "tests.support.gloo_transfer.WorkerExtension"
        super().__init__(spec, executors, number)
        self._orders = Path(spec.model.path).parent

    @ray.method(num_returns=2)
    async def run_group(self, *arguments: Any, **options: Any) -> Any:
        self._die_if_ordered("run_group")
        return await super().run_group(*arguments, **options)

    async def receive_weights(self, info: dict[str, Any]) -> None:
        self._die_if_ordered("receive_weights")
        await super().receive_weights(info)

    def _die_if_ordered(self, method: str) -> None:
        for order in self._orders.glob(f"{method} may die *"):
            try:
                order.unlink()
            except FileNotFoundError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
