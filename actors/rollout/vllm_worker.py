"""What runs of this project inside vLLM's worker: it loads a file of weights into the running model, and ends with its owner.

vLLM imports this module in its worker process because `WORKER_EXTENSION` names a class in it; that import registers the transfer by
file. The module imports no Ray, and nothing else imports it.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.v1.core.sched import output

from actors.rollout.engine_settings import BACKENDS, OWNER_PID
from actors.weights import comparison, lora
from arm_rl.core.owner import die_with


class WorkerExtension:
    """Methods that vLLM's worker class gets; the import of this module registers the transfer by file."""

    get_model: Any  # the worker's own: it returns the model

    def sample_weights(self, names: Sequence[str]) -> dict[str, tuple[list[int], bytes]]:
        """Return blocks of the named weights as the engine uses them (`weights.comparison`)."""
        return comparison.engine_blocks(self.get_model(), names)


@dataclass
class NoInfo(WeightTransferInitInfo):
    """Nothing: a file needs no connection."""


@dataclass
class FileInfo(WeightTransferUpdateInfo):
    """The file that holds the new weights."""

    path: (
        str  # safetensors: all of the model's weights under Hugging Face's names, or the adapters of `lora.publishable`
    )
    is_adapter: bool = False  # adapters are merged into the base model's own weights


class WeightsFileTransfer(WeightTransferEngine[NoInfo, FileInfo]):
    """Replaces all weights by those of a file, through vLLM's own loading, layer by layer."""

    init_info_cls = NoInfo
    update_info_cls = FileInfo

    def init_transfer_engine(self, init_info: NoInfo) -> None:
        """Do nothing: a file needs no connection."""

    def start_weight_update(self) -> None:
        """Prepare the model's layers to be loaded again."""
        self._expected = {
            name for name, _ in self.model.named_parameters()
        }  # tied ones once, which layers to load are not
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileInfo) -> None:
        """Load the file.

        Raises:
            ValueError: If the file lacks weights of some parameter.
        """
        read = load_file(update_info.path)
        tensors: Iterable[tuple[str, torch.Tensor]] = read.items()
        if update_info.is_adapter:
            tensors = lora.merged_weights(self.model_config.model, read, self.model_config.dtype, self.device)
        missing = sorted(self._expected - self.model.load_weights(tensors))
        if missing:
            raise ValueError(f"{update_info.path}: no weights for {len(missing)} parameters, {missing[0]} among them")

    def finish_weight_update(self) -> None:
        """Make the kernels' copies of the weights again."""
        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_head(self.model)

    def shutdown(self) -> None:
        """Do nothing: nothing is held."""


def repack_tied_head(model: torch.nn.Module) -> None:
    """Renew the packed copy that CPU kernels keep of a tied `lm_head`.

    vLLM 0.32 renews the copies of all layers after a reload except this one, whose parameter belongs to the embedding; the engine
    would go on with the old head. Remove this when vLLM does it: test_engine.py compares log-probabilities after an update.
    """
    head = getattr(model.get_language_model(), "lm_head", None)
    if hasattr(head, "cpu_linear"):
        dispatch_cpu_unquantized_gemm(head, remove_weight=False)


def _send_all_images() -> None:
    """Let the scheduler hand every image of a request to the worker.

    vLLM 0.32 leaves out those that the prefix cache covers when the request starts. Where a weight update empties the caches under a
    running request, its context is computed again without them, and the engine dies. The images go from one object to another of the
    same process, so nothing is lost; where tensor parallel workers have processes of their own, the scheduler's is not this one, and
    an update has to wait for running requests. Remove this when vLLM sends them: test_engine.py empties the cache under such requests.
    """
    output.strip_covered_mm_data = lambda mm_features, *_, **__: mm_features


_send_all_images()
# When an actor is killed outright, vLLM's processes would stay behind with all their memory; when a worker dies, they all end.
die_with(int(os.environ[OWNER_PID]))
WeightTransferEngineFactory.register_engine(BACKENDS["file"], WeightsFileTransfer)
