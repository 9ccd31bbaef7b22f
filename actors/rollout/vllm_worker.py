"""What runs of ours inside vLLM's worker: it reads a file of weights into the running model, and ends with the process that owns it.

vLLM imports this module in its worker process because `WORKER_EXTENSION` names a class in it; that import registers the transfer. It
knows no Ray and is imported by nothing else.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.v1.core.sched import output

from actors.weights import lora
from actors.weights.files import BACKENDS, OWNER_PID
from actors.weights.load_plan import LoadPlan, Recorder
from actors.weights.shared_file import MappedWeights, map_weights


class WorkerExtension:
    """Mixed into vLLM's worker class; what is needed most is the import."""

    weight_transfer_engine: "WeightsFileTransfer"

    def has_load_plan(self) -> bool:
        """Whether the next file, if it is like the last one, is loaded as recorded."""
        return self.weight_transfer_engine.plan is not None


@dataclass
class NoInfo(WeightTransferInitInfo):
    """There is nothing to connect."""


@dataclass
class FileInfo(WeightTransferUpdateInfo):
    """Which file holds the new weights."""

    path: str  # safetensors, all of the model's weights under Hugging Face's names, or what `lora.publishable` gives
    is_adapter: bool = False  # the latter: it is merged into the model's own weights


class WeightsFileTransfer(WeightTransferEngine[NoInfo, FileInfo]):
    """Replaces all weights by those of a file.

    The first file goes through vLLM's own loading, layer by layer, which on CPU is recorded; a file with the same header is then loaded
    as that record says.
    """

    init_info_cls = NoInfo
    update_info_cls = FileInfo

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._owner = vllm_config.additional_config[OWNER_PID]
        self.plan: LoadPlan | None = None
        self._recorder: Recorder | None = None
        self._is_layerwise = False
        _die_with(self._owner)

    def init_transfer_engine(self, init_info: NoInfo) -> None:
        """There is nothing to connect."""

    def start_weight_update(self) -> None:
        """There is nothing to prepare before the file is known."""

    def receive_weights(self, update_info: FileInfo) -> None:
        """Loads the file.

        Raises:
            ValueError: the file lacks weights of some parameter.
        """
        weights = map_weights(Path(update_info.path))
        if update_info.is_adapter:
            self._load_layers(
                lora.merged_weights(self.model_config.model, weights.tensors, self.model_config.dtype, self.device),
                update_info.path,
            )
        elif self.plan is not None and self.plan.header == weights.header:
            self.plan.load(weights, os.sched_getaffinity(self._owner))
        else:
            self._load_layers(weights.tensors.items(), update_info.path, recorded=weights)

    def _load_layers(
        self, tensors: Iterable[tuple[str, torch.Tensor]], path: str, recorded: MappedWeights | None = None
    ) -> None:
        """vLLM's own loading; it is recorded where it is all from one file."""
        expected = {name for name, _ in self.model.named_parameters()}
        self._is_layerwise = True
        initialize_layerwise_reload(self.model)
        if recorded is not None and self.device.type == "cpu" and all(map(_needs_loading_alone, self.model.modules())):
            self._recorder = Recorder(self.model, recorded, may_be_padded=_is_embedding)
        with self._recorder or contextlib.nullcontext():
            loaded = self.model.load_weights(tensors)
        missing = sorted(expected - loaded)
        if missing:
            raise ValueError(f"{path}: no weights for {len(missing)} parameters, {missing[0]} among them")

    def finish_weight_update(self) -> None:
        """Makes the kernels' copies of the weights anew."""
        if self._is_layerwise:
            finalize_layerwise_reload(self.model, self.model_config)
            self.plan = self._recorder.plan() if self._recorder is not None else None
            self._recorder, self._is_layerwise = None, False
        _repack_tied_head(self.model)

    def shutdown(self) -> None:
        """There is nothing to release."""


class NcclTransfer(NCCLWeightTransferEngine):
    """vLLM's own, in a process that ends with its owner."""

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        _die_with(vllm_config.additional_config[OWNER_PID])

    def finish_weight_update(self) -> None:
        """As for files."""
        super().finish_weight_update()
        _repack_tied_head(self.model)


class IpcTransfer(IPCWeightTransferEngine):
    """vLLM's own, in a process that ends with its owner."""

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        _die_with(vllm_config.additional_config[OWNER_PID])


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


def _needs_loading_alone(layer: torch.nn.Module) -> bool:
    """Whether a layer's new weights have to be loaded and packed, and that is all."""
    method = getattr(layer, "quant_method", None)
    if is_deferred_attention_layer(layer):
        return method is None and not list(layer.parameters())
    return method is None or type(method) in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)


def _is_embedding(layer: torch.nn.Module) -> bool:
    """Whether its rows may be more than the vocabulary has."""
    return isinstance(getattr(layer, "quant_method", None), UnquantizedEmbeddingMethod)


def _repack_tied_head(model: torch.nn.Module) -> None:
    """Renews the packed copy that CPU kernels keep of a tied `lm_head`.

    vLLM 0.32 renews the copies of all layers after a reload except this one, whose parameter belongs to the embedding; the engine would
    go on with the old head. Goes when vLLM does it: test_engine.py compares log-probabilities after an update.
    """
    head = getattr(model.get_language_model(), "lm_head", None)
    if hasattr(head, "cpu_linear"):
        dispatch_cpu_unquantized_gemm(head, remove_weight=False)


def _send_all_images() -> None:
    """Lets the scheduler hand every image of a request to the worker.

    vLLM 0.32 leaves out those that the prefix cache covers when the request starts. Where the caches are emptied under a running request,
    by an update of the weights, its context is computed anew without them, and the engine dies. The images go from one object to another
    of the same process, so that nothing is lost; where tensor parallel workers have processes of their own, the scheduler's is not this
    one, and an update has to wait for running requests. Goes when vLLM sends them: test_engine.py empties the cache under such requests.
    """
    output.strip_covered_mm_data = lambda mm_features, *_, **__: mm_features


_send_all_images()
WeightTransferEngineFactory.register_engine(BACKENDS["file"], WeightsFileTransfer)
WeightTransferEngineFactory.register_engine(BACKENDS["nccl"], NcclTransfer)
WeightTransferEngineFactory.register_engine(BACKENDS["ipc"], IpcTransfer)
