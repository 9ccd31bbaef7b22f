"""What runs of ours inside vLLM's worker: it reads a file of weights into the running model, and ends with the process that owns it.

vLLM imports this module in its worker process because `WORKER_EXTENSION` names a class in it; that import registers the transfer. It
knows no Ray and is imported by nothing else.
"""

import os
import select
import signal
import threading
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.weight_sync import BACKEND, OWNER_PID


class WorkerExtension:
    """Mixed into vLLM's worker class; empty, for what is needed here is the import."""


@dataclass
class NoInfo(WeightTransferInitInfo):
    """There is nothing to connect."""


@dataclass
class FileInfo(WeightTransferUpdateInfo):
    """Which file holds the new weights."""

    path: str  # safetensors, all of the model's weights under Hugging Face's names


class WeightsFileTransfer(WeightTransferEngine[NoInfo, FileInfo]):
    """Replaces all weights by those of a file, layer by layer."""

    init_info_cls = NoInfo
    update_info_cls = FileInfo

    def __init__(self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: torch.nn.Module) -> None:
        super().__init__(config, vllm_config, device, model)
        _die_with(vllm_config.additional_config[OWNER_PID])

    def init_transfer_engine(self, init_info: NoInfo) -> None:
        """There is nothing to connect."""

    def start_weight_update(self) -> None:
        """Remembers the parameters, so that none can be left out, and prepares the layers for loading."""
        self._expected = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileInfo) -> None:
        """Loads the file.

        Raises:
            ValueError: the file lacks weights of some parameter.
        """
        loaded = self.model.load_weights(load_file(update_info.path).items())
        missing = sorted(self._expected - loaded)
        if missing:
            raise ValueError(f"{update_info.path}: no weights for {len(missing)} parameters, {missing[0]} among them")

    def finish_weight_update(self) -> None:
        """Makes the kernels' copies of the weights anew."""
        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied_head(self.model)

    def shutdown(self) -> None:
        """There is nothing to release."""


def _die_with(owner_pid: int) -> None:
    """Kills this process when the engine's owner is gone.

    Of an actor that is killed outright, vLLM's processes would stay behind with all their memory; when a worker dies, they all end.
    """

    def watch() -> None:
        try:
            owner = os.pidfd_open(owner_pid)
            select.select([owner], [], [])  # readable when the process ends
        except ProcessLookupError:
            pass  # it has ended already
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="owner-watch", daemon=True).start()


def _repack_tied_head(model: torch.nn.Module) -> None:
    """Renews the packed copy that CPU kernels keep of a tied `lm_head`.

    vLLM 0.32 renews the copies of all layers after a reload except this one, whose parameter belongs to the embedding; the engine would
    go on with the old head. Goes when vLLM does it: test_engine.py compares log-probabilities after an update.
    """
    head = getattr(model.get_language_model(), "lm_head", None)
    if hasattr(head, "cpu_linear"):
        dispatch_cpu_unquantized_gemm(head, remove_weight=False)


WeightTransferEngineFactory.register_engine(BACKEND, WeightsFileTransfer)
