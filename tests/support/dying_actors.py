"""Actors that die when a test says so. They import little, so that they are soon there again."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from actors.supervision import SupervisedActor
from arm_rl.core.errors import EngineDied, UserError
from arm_rl.core.tracing import SpanBatch


class Puppet(SupervisedActor):
    """In place of a rollout actor: serves what is in the file that it was given, and dies as the sample's files in a folder say."""

    def __init__(self, folder: Path, node: str = "a node") -> None:
        self._folder, self._node, self._weights = folder, node, "base"

    async def start(self) -> str:
        with (self._folder / "starts").open("a") as file:
            file.write(f"{os.getpid()}\n")
        if (self._folder / "cannot start").exists():
            raise EngineDied("no memory for the cache")
        if (self._folder / "starts no more").exists():
            raise ValueError("another number of heads")
        return self._node

    async def copy_weights(self, weights: Any, data: Any) -> Any:
        from actors.weights.files import place_weights  # it imports torch

        with (self._folder / "copies").open("a") as file:
            file.write(f"{self._node}\n")
        dies = self._folder / f"{self._node} dies as it writes"
        if dies.exists():
            dies.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        folder = self._folder / self._node
        folder.mkdir(exist_ok=True)
        return replace(weights, path=place_weights(data, folder, weights.version), is_copy=True)

    async def load_weights(self, weights: Any) -> None:
        assert weights.is_copy == (self._node != "a node")
        self._weights = weights.path.read_text()

    @ray.method(num_returns=2)
    async def run_group(self, sample, *, group_id, size, temperature, seed) -> tuple[str, str]:
        order = self._folder / f"{group_id} may die"
        if order.exists() and (left := int(order.read_text() or 0)):
            order.write_text(str(left - 1))
            if (self._folder / "engine").exists():
                raise EngineDied("the engine is gone")
            os.kill(os.getpid(), signal.SIGKILL)
        gate = self._folder / f"{group_id} waits"
        while gate.exists():
            await asyncio.sleep(0.02)
        return f"{group_id} {seed} by {self._weights}", "images"

    async def sleep(self) -> None:
        pass

    async def wake(self) -> None:
        pass

    async def sample_weights(self, names) -> dict:
        return dict.fromkeys(names, self._weights)

    async def spans(self) -> SpanBatch:
        return SpanBatch(spans=[], num_lost=0)

    async def close(self) -> None:
        pass


class Victim(SupervisedActor):
    """Ends in whatever way is asked for."""

    def __init__(self, wrong: str = "") -> None:
        if wrong:
            raise FileNotFoundError(wrong)

    async def process(self) -> int:
        return os.getpid()

    async def fail(self, user: bool) -> None:
        try:
            raise OSError("a secondary matter")
        except OSError as error:
            raise (UserError("data.train: no such file") if user else ValueError("the matter itself")) from error

    async def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class TransferringRank:
    """A learner's rank whose part in a transfer goes wrong."""

    async def send(self, kind: str, version: int, engines: list, workers_per_engine: int) -> None:
        if kind == "nccl" and version:
            raise ConnectionError("an engine hung up")
        if kind == "ipc":
            raise ValueError("the tensor exceeds the buffer")
        if kind == "nccl" and engines:
            raise EngineDied("an engine was lost while weights were sent: gloo found its end closed")
        await asyncio.Event().wait()
