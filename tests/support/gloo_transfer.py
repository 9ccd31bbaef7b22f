"""Gloo in place of NCCL, so that vLLM's weight transfer runs without a GPU: for the trainer's side, and for an engine's worker process.

Importing the module puts gloo in NCCL's place, and streams that do nothing in place of a GPU's.
"""

import datetime
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor
from vllm.distributed.weight_transfer import nccl_engine, packed_tensor

from actors.rollout import vllm_worker

TIMEOUT = datetime.timedelta(seconds=60)


class GlooGroup:
    """What vLLM's engines use of their communicator."""

    def __init__(self, address: str, port: int, rank: int, world_size: int) -> None:
        store = dist.TCPStore(address, port, world_size, is_master=rank == 0, timeout=TIMEOUT)
        self._group = dist.ProcessGroupGloo(store, rank, world_size, TIMEOUT)

    def broadcast(self, tensor: Tensor, src: int, stream: None = None) -> None:
        options = dist.BroadcastOptions()
        options.rootRank = src
        self._group.broadcast([tensor], options).wait()

    def destroy(self) -> None:
        pass


def trainer_group(info) -> GlooGroup:
    """Joins as the sender."""
    return GlooGroup(info.master_address, info.master_port, 0, info.world_size)


def worker_group(info, parallel) -> GlooGroup:
    """Joins as a worker."""
    return GlooGroup(info.master_address, info.master_port, parallel.rank + info.rank_offset, info.world_size)


class WorkerExtension(vllm_worker.WorkerExtension):
    """Named in an engine's settings, it brings this module, and with it the exchange, into the worker."""


def finish_weight_update(self, finish=nccl_engine.NCCLWeightTransferEngine.finish_weight_update) -> None:
    """As on a GPU, and then what CPU kernels need."""
    finish(self)
    vllm_worker.repack_tied_head(self.model)


nccl_engine.NCCLWeightTransferEngine.finish_weight_update = finish_weight_update
nccl_engine.worker_init_process_group = worker_group
nccl_engine.open_trainer_endpoint = trainer_group


class Stream:
    """A stream whose work is done at once."""

    def synchronize(self) -> None:
        pass


packed_tensor._get_streams = lambda device_index, number: (Stream(),) * number
torch.accelerator.current_device_index = lambda: 0
torch.cuda.stream = nullcontext
