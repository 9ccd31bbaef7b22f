"""Weights from GPU to GPU, by vLLM's own transfer engines: NCCL where learners and engines are apart, IPC where they share GPUs.

    each round: rank 0 tells all engines what comes -> all ranks gather a bucket of shards -> rank 0 broadcasts it (NCCL), or every rank
    hands its copy to the engine beside it (IPC) -> the next bucket

The ranks import this when the first weights are sent; it alone imports vLLM on the learners' side. The engines' side is `vllm_worker`.
"""

import math
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerInitInfo, TrainerWeightTransferEngine, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

from actors.weights import gather


class PolicySource(WeightSource):
    """A model's whole weights under the names of Hugging Face's files, in buckets that all ranks gather together."""

    def __init__(self, model: Any, zero_stage: int, *, wanted: bool) -> None:
        """Prepares.

        Args:
            wanted: whether this rank sends; the others only take part in gathering.

        Raises:
            ValueError: the files of such a model hold more than its weights renamed.
        """
        self._model, self._zero_stage, self._wanted = model, zero_stage, wanted
        shapes = {name: getattr(weight, "ds_shape", weight.shape) for name, weight in model.named_parameters()}
        empty = {
            name: torch.empty(shapes[name], dtype=weight.dtype, device="meta")
            for name, weight in model.named_parameters()
        }
        names = {id(tensor): name for name, tensor in gather.in_files_order(model, empty).items()}
        if len(names) != len(empty) or any(id(tensor) not in names for tensor in empty.values()):
            raise ValueError(
                "placement.weight_transfer: file is needed: this model's files are more than its weights renamed"
            )
        self._names = {name: names[id(tensor)] for name, tensor in empty.items()}
        self._metadata = [
            ParamMeta(self._names[name], tensor.dtype, tuple(tensor.shape)) for name, tensor in empty.items()
        ]

    def metadata(self) -> list[ParamMeta]:
        """Names, types and shapes, without gathering."""
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for piece in gather.pieces(self._model, self._zero_stage, None, wanted=self._wanted):
            for name, weight in piece:
                yield self._names[name], weight


class EngineClients:
    """All engines of a run as vLLM's trainer calls them: a call goes to each, and returns when each has answered."""

    def __init__(
        self, actors: Sequence[ActorHandle], workers_per_engine: int, get: Callable[[list[Any]], Any] = ray.get
    ) -> None:
        self._actors, self._workers_per_engine, self._get = actors, workers_per_engine, get
        self.version = 0  # that the next update brings

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connects them; by NCCL the workers of one engine after those of the other."""
        calls = []
        for number, actor in enumerate(self._actors):
            ranks = (
                {"rank_offset": init_info["rank_offset"] + number * self._workers_per_engine}
                if "rank_offset" in init_info
                else {}
            )
            calls.append(actor.connect_weights.remote(init_info | ranks))
        self._get(calls)

    def start_weight_update(self) -> None:
        """They pause, and make room."""
        self._get([actor.begin_update.remote() for actor in self._actors])

    def update_weights(self, update_info: Any) -> None:
        """They receive all weights, or some more of them."""
        self._get([actor.receive_weights.remote(update_info) for actor in self._actors])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """They go on."""
        self._get([actor.end_update.remote(self.version) for actor in self._actors])


class DirectTransfer:
    """One rank's part."""

    def __init__(
        self,
        kind: str,
        source: PolicySource,
        engines: EngineClients,
        *,
        rank: int,
        address: str,
        num_workers: int,
    ) -> None:
        """Connects to the engines; all ranks at once.

        Args:
            kind: `nccl` or `ipc`.
            address: of this node.
            num_workers: of all engines together.
        """
        buffer_bytes = packed_buffer_bytes(source.metadata())
        info: TrainerInitInfo = IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=buffer_bytes)
        if kind == "nccl":
            info = NCCLTrainerInitInfo(
                rank=rank,
                master_address=address,
                master_port=_free_port(address),
                world_size=1 + num_workers,
                packed=True,
                packed_buffer_size_bytes=buffer_bytes,
            )
        self._engines = engines
        self._trainer: TrainerWeightTransferEngine = WeightTransferTrainerFactory.trainer_init(
            info, client=engines, source=source
        )

    def send(self, version: int) -> None:
        """Brings all engines to the weights as they are; all ranks at once."""
        self._engines.version = version
        self._trainer.send_weights()


def packed_buffer_bytes(metadata: Sequence[ParamMeta]) -> int:
    """Return the size of the buffer that carries many weights at a time, in bytes: vLLM's default, or the largest weight.

    vLLM's IPC transfer refuses a weight that is larger than the buffer, as the embedding of a 7B model is (1,089,994,752 bytes).
    """
    return max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, *(math.prod(one.shape) * one.dtype.itemsize for one in metadata))


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
