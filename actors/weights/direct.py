"""Weights from GPU to GPU, by vLLM's own transfer engines: NCCL where learners and engines are apart, IPC where they share GPUs.

    each round: rank 0 tells all engines what comes -> all ranks gather a bucket of shards -> rank 0 broadcasts it (NCCL), or every rank
    hands its copy to the engine beside it (IPC) -> the next bucket

Where an engine is lost meanwhile, every rank still takes part in gathering to the end, so that none waits for another; then rank 0
raises, and the transfer starts again with other engines.

The ranks import this when the first weights are sent; it alone imports vLLM on the learners' side. The engines' side is `vllm_worker`.
"""

import math
import threading
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

from actors.collectives import is_of_collective
from actors.supervision import cause_of, describe_error, is_loss
from actors.weights import gather
from arm_rl.core.errors import EngineDied
from arm_rl.core.own_server import free_port

_SECONDS_TO_NOTICE = 10.0  # after rank 0's part of a transfer has failed: until an engine's failure is known


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
        for piece in self.begin():
            for name, weight in piece:
                yield self._names[name], weight

    def begin(self) -> Iterator[list[tuple[str, Tensor]]]:
        """Begin a round, and return its buckets."""
        self._pieces = gather.pieces(self._model, self._zero_stage, None, wanted=self._wanted)
        return self._pieces

    def finish(self) -> None:
        """Gather the rest of the round, for which the other ranks wait."""
        for _ in self._pieces:
            pass


class EngineClients:
    """All engines of a run as vLLM's trainer calls them: a call goes to each, and returns when each has answered.

    No call raises, since the other ranks are in the midst of collectives: the first failure is kept, and later calls do nothing.
    """

    def __init__(
        self, actors: Sequence[ActorHandle], workers_per_engine: int, get: Callable[[list[Any]], Any] = ray.get
    ) -> None:
        self._actors, self._workers_per_engine, self._get = actors, workers_per_engine, get
        self.version = 0  # that the next update brings
        self.failure: Exception | None = None
        self.failed = threading.Event()  # set when `failure` is, by the thread that called
        self.on_failure: Callable[[], None] = lambda: None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connects them; by NCCL the workers of one engine after those of the other."""
        infos = []
        for number in range(len(self._actors)):
            ranks = (
                {"rank_offset": init_info["rank_offset"] + number * self._workers_per_engine}
                if "rank_offset" in init_info
                else {}
            )
            infos.append(init_info | ranks)
        self._call("connect_weights", infos)

    def start_weight_update(self) -> None:
        """They pause, and make room."""
        self._call("begin_update")

    def update_weights(self, update_info: Any) -> None:
        """They receive all weights, or some more of them."""
        self._call("receive_weights", [update_info] * len(self._actors))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """They go on."""
        self._call("end_update", [self.version] * len(self._actors))

    def are(self, actors: Sequence[ActorHandle]) -> bool:
        """Return whether these are the engines."""
        return list(self._actors) == list(actors)

    def _call(self, method: str, arguments: Sequence[Any] | None = None) -> None:
        """Call a method of each engine, with its own argument if there are any, unless a call has failed before."""
        if self.failed.is_set():
            return
        each = [()] * len(self._actors) if arguments is None else [(argument,) for argument in arguments]
        try:
            self._get([getattr(actor, method).remote(*own) for actor, own in zip(self._actors, each, strict=True)])
        except Exception as error:
            self.failure = error
            self.failed.set()
            self.on_failure()


class DirectTransfer:
    """One rank's part in a transfer to certain engines."""

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
        """Prepare; the first `send` connects.

        Args:
            kind: `nccl` or `ipc`.
            source: Weights to send.
            engines: All engines.
            rank: This rank.
            address: Address of this node.
            num_workers: Number of the workers of all engines together.
        """
        buffer_bytes = packed_buffer_bytes(source.metadata())
        info: TrainerInitInfo = IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=buffer_bytes)
        if kind == "nccl":
            info = NCCLTrainerInitInfo(
                rank=rank,
                master_address=address,
                master_port=free_port(address),
                world_size=1 + num_workers,
                packed=True,
                packed_buffer_size_bytes=buffer_bytes,
            )
        self._info, self._source, self._engines = info, source, engines
        self._trainer: TrainerWeightTransferEngine | None = None
        engines.on_failure = self.close  # or this rank would wait in a broadcast for an engine that is gone

    def reaches(self, actors: Sequence[ActorHandle]) -> bool:
        """Return whether the transfer goes to these engines, and none of them is known to be lost."""
        return self._engines.are(actors) and not self._engines.failed.is_set()

    def send(self, version: int) -> None:
        """Bring all engines to the weights as they are; all ranks at once.

        Raises:
            EngineDied: On rank 0, if an engine was lost: the weights of the others may be mixed.
            Exception: What an engine raised and would raise again.
        """
        self._engines.version = version
        self._source.begin()
        try:
            if self._trainer is None:
                self._trainer = WeightTransferTrainerFactory.trainer_init(
                    self._info, client=self._engines, source=self._source
                )
            self._trainer.send_weights()
        except Exception:
            self._source.finish()
            if not self._engines.failed.wait(_SECONDS_TO_NOTICE):
                raise
        if (failure := self._engines.failure) is not None:
            if is_loss(failure) or is_of_collective(cause_of(failure)):
                raise EngineDied(f"an engine was lost while weights were sent: {describe_error(failure)}") from failure
            raise failure

    def close(self) -> None:
        """Leave the transfer group."""
        trainer, self._trainer = self._trainer, None
        if trainer is not None:
            trainer.shutdown()


def packed_buffer_bytes(metadata: Sequence[ParamMeta]) -> int:
    """Return the size of the buffer that carries many weights at a time, in bytes: vLLM's default, or the largest weight.

    vLLM's IPC transfer refuses a weight that is larger than the buffer, as the embedding of a 7B model is (1,089,994,752 bytes).
    """
    return max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, *(math.prod(one.shape) * one.dtype.itemsize for one in metadata))
