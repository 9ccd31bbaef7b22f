"""Both ends of vLLM's packed transfer without a GPU: an engine's receiving side, and learner ranks that send through gloo."""

import os
import signal
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from ray.actor import ActorHandle
from torch import Tensor

from actors.learner.rank import Learner
from actors.rollout.engine_settings import OWNER_PID
from arm_rl.core.compute_config import Transfer


class Received:
    """A model that keeps the weights that it is given."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, weight in weights:
            assert name not in self.weights, f"{name} came twice"
            self.weights[name] = weight


class GlooReceiver:
    """An engine that receives by vLLM's NCCL engine, with gloo in place of NCCL."""

    def __init__(self) -> None:
        _replace_nccl()
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

        self._engine = object.__new__(NCCLWeightTransferEngine)
        self._engine.device = torch.device("cpu")
        self._engine.parallel_config = SimpleNamespace(rank=0)
        self._dies = False

    def die_at_next_update(self) -> None:
        self._dies = True

    def connect_weights(self, info: dict[str, Any]) -> None:
        self._engine.init_transfer_engine(self._engine.init_info_cls(**info))

    def begin_update(self) -> None:
        self._engine.model = Received()

    def receive_weights(self, info: dict[str, Any]) -> None:
        if self._dies:
            os.kill(os.getpid(), signal.SIGKILL)
        self._engine.receive_weights(self._engine.update_info_cls(**info))

    def end_update(self, version: int) -> None:
        pass

    def received(self) -> dict[str, Tensor]:
        return {name: weight.clone() for name, weight in self._engine.model.weights.items()}


class GlooLearner(Learner):
    """A learner rank that sends through gloo, in a buffer that is smaller than the largest weight by default."""

    def send(self, kind: Transfer, version: int, engines: Sequence[ActorHandle], workers_per_engine: int) -> None:
        _replace_nccl()
        from actors.weights import direct

        direct.DEFAULT_PACKED_BUFFER_SIZE_BYTES = 10_000
        super().send(kind, version, engines, workers_per_engine)


def _replace_nccl() -> None:
    os.environ[OWNER_PID] = str(os.getppid())
    from tests.support import gloo_transfer  # noqa: F401
