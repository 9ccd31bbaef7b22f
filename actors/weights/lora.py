"""LoRA: low-rank adapters beside the language model's matrices (arXiv 2106.09685), and the weights that they amount to, W + s B A.

The learner trains the adapters alone, and publishes them alone: who has the base model merges them into it (`merged_weights`).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from actors.weights.model_files import weight_files
from arm_rl.core.compute_config import LearnerConfig

_SCALING = "scaling"  # the one entry of published adapters that is no matrix
_DOWN, _UP = ".lora_A", ".lora_B"


@dataclass(frozen=True, slots=True)
class Adapter:
    """Of one matrix."""

    down: nn.Parameter  # A: [rank, inputs]
    up: nn.Parameter  # B: [outputs, rank], 0 at first


def add_adapters(model: Any, config: LearnerConfig) -> None:
    """Puts adapters into the language model; nothing else is trainable then.

    Raises:
        ValueError: it has no such matrices.
    """
    from peft import inject_adapter_in_model

    inject_adapter_in_model(_peft_config(config), model)


def adapters_of(model: nn.Module) -> dict[str, Adapter]:
    """By the name that the matrix has without them; none in a model without."""
    return {
        f"{name}.weight": Adapter(module.lora_A["default"].weight, module.lora_B["default"].weight)
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and isinstance(module.lora_A, nn.ModuleDict)
    }


def plain_name(name: str) -> str | None:
    """The name that a parameter has in a model without adapters; None for an adapter."""
    return None if _DOWN in name or _UP in name else name.replace(".base_layer", "")


def merge(weight: Tensor, down: Tensor, up: Tensor, scaling: Tensor) -> Tensor:
    """W + s B A, in float32, rounded to the weight's type."""
    return (weight.float() + scaling * (up.float() @ down.float())).to(weight.dtype)


def scaling_of(config: LearnerConfig) -> Tensor:
    """The factor s = alpha / rank."""
    return torch.tensor(config.lora_alpha / config.lora_rank, dtype=torch.float32)


def publishable(adapters: Mapping[str, tuple[Tensor, Tensor]], scaling: Tensor) -> dict[str, Tensor]:
    """A and B by the names of their matrices, as the tensors of a file."""
    tensors = {_SCALING: scaling}
    for name, (down, up) in adapters.items():
        tensors |= {f"{name}{_DOWN}": down, f"{name}{_UP}": up}
    return tensors


def merged_weights(
    base: str, published: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """The base model's weights with published adapters in them, one at a time, by the names of its files.

    Args:
        base: its folder, or its name on the hub, where it has been fetched from before.
        dtype: that the model is run in.

    Raises:
        ValueError: an adapter's matrix is in none of the files.
    """
    waiting = {_place(name.removesuffix(_DOWN)): name.removesuffix(_DOWN) for name in published if name.endswith(_DOWN)}
    for path in _files(base):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                weight = file.get_tensor(name)
                if weight.is_floating_point():
                    weight = weight.to(device, dtype)
                adapted = waiting.pop(_place(name), None)
                if adapted is not None:
                    parts = (published[key].to(device) for key in (f"{adapted}{_DOWN}", f"{adapted}{_UP}", _SCALING))
                    weight = merge(weight, *parts)
                yield name, weight
    if waiting:
        raise ValueError(f"{base}: no weights for {len(waiting)} adapters, {min(waiting.values())} among them")


def save_adapter(adapters: Mapping[str, tuple[Tensor, Tensor]], config: LearnerConfig, base: str, folder: Path) -> None:
    """Writes the adapters as peft reads them, for those who keep the base model and serve many."""
    folder.mkdir(parents=True, exist_ok=True)
    written = _peft_config(config)
    written.base_model_name_or_path = base
    written.save_pretrained(str(folder))
    tensors = {}
    for name, pair in adapters.items():
        for kind, tensor in zip((_DOWN, _UP), pair, strict=True):
            tensors[f"base_model.model.{name.removesuffix('.weight')}{kind}.weight"] = (
                tensor.detach().cpu().contiguous()
            )
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _peft_config(config: LearnerConfig) -> Any:
    from peft import LoraConfig

    targets = "|".join(re.escape(target) for target in config.lora_targets)
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=rf".*language_model\..*\.(?:{targets})",  # vision towers have modules of the same names
    )


def _place(name: str) -> str | None:
    """What names of one matrix have in common, whichever prefixes the files of a version have: `layers.0.self_attn.q_proj.weight`."""
    found = None if "visual" in name else re.search(r"(?:^|\.)(layers\.\d+\..*)", name)
    return found[1] if found else None


def _files(base: str) -> list[Path]:
    folder = Path(base)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(base, local_files_only=True))
    return weight_files(folder)
