"""A model as planning sees it: how many parameters lie where, and the widths that decide on memory and time."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.errors import UserError


class UnknownModel(UserError):
    """There is no such folder, and the name is none of `KNOWN`."""


def _qwen2_5(*, vision_intermediate: int = 3420, tied: bool = False, **text: Any) -> PreTrainedConfig:
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": vision_intermediate,
        "num_heads": 16,
        "out_hidden_size": text["hidden_size"],
    }
    return Qwen2_5_VLConfig(
        text_config={"vocab_size": 152064, **text, "tie_word_embeddings": tied},
        vision_config=vision,
        tie_word_embeddings=tied,
    )


def _qwen3(*, large_vision: bool = False, tied: bool = False, **text: Any) -> PreTrainedConfig:
    depth, hidden, intermediate, taps = (27, 1152, 4304, [8, 16, 24]) if large_vision else (24, 1024, 4096, [5, 11, 17])
    vision = {
        "depth": depth,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "deepstack_visual_indexes": taps,
        "out_hidden_size": text["hidden_size"],
    }
    return Qwen3VLConfig(
        text_config={
            "vocab_size": 151936,
            "head_dim": 128,
            "num_key_value_heads": 8,
            **text,
            "tie_word_embeddings": tied,
        },
        vision_config=vision,
        tie_word_embeddings=tied,
    )


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
    }


# The config.json of each model as it is published.
KNOWN = {
    "Qwen2.5-VL-3B": lambda: _qwen2_5(tied=True, **_sizes(2048, 11008, 36, 16, 2) | {"vocab_size": 151936}),
    "Qwen2.5-VL-7B": lambda: _qwen2_5(**_sizes(3584, 18944, 28, 28, 4)),
    "Qwen2.5-VL-32B": lambda: _qwen2_5(vision_intermediate=3456, **_sizes(5120, 27648, 64, 40, 8)),
    "Qwen2.5-VL-72B": lambda: _qwen2_5(vision_intermediate=3456, **_sizes(8192, 29568, 80, 64, 8)),
    "Qwen3-VL-2B": lambda: _qwen3(tied=True, **_sizes(2048, 6144, 28, 16, 8)),
    "Qwen3-VL-4B": lambda: _qwen3(tied=True, **_sizes(2560, 9728, 36, 32, 8)),
    "Qwen3-VL-8B": lambda: _qwen3(large_vision=True, **_sizes(4096, 12288, 36, 32, 8)),
    "Qwen3-VL-32B": lambda: _qwen3(large_vision=True, **_sizes(5120, 25600, 64, 64, 8)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """A stack of equal transformer blocks: widths, in elements."""

    layers: int
    hidden: int
    query: int  # heads times their width
    key_value: int  # of keys, and again of values
    heads: int
    key_value_heads: int
    intermediate: int  # of the feed-forward part
    gated: bool  # SwiGLU and RMS norms; else a plain feed-forward part and layer norms
    fused: bool  # queries, keys and values come of one product
    query_key_norm: bool  # queries and keys are normalised
    parameters: int  # of one block

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.query // self.heads


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """Parameters by part, each counted once; tied ones with the embeddings."""

    name: str
    vision: int  # the tower without its projector
    projector: int  # `visual.merger`
    embeddings: int
    blocks: int  # of the language model, with its last norm
    head: int  # 0 where it is tied to the embeddings
    text: Blocks
    tower: Blocks
    vocabulary: int
    patch_values: int  # numbers of one patch: channels, frames, rows, columns
    patches_per_token: int  # of the vision tower, that become one image token
    largest: int  # parameters of the largest module that ZeRO-3 gathers at once: a block, the embeddings or the head
    num_tensors: int

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.vision + self.projector + self.embeddings + self.blocks + self.head

    def trained(self, config: LearnerConfig) -> int:
        """Parameters that a learner trains: its adapters, or what it does not freeze (`learner.freeze_vision` is of the tower alone)."""
        if config.lora_rank:
            return self.adapters(config)
        return self.parameters - config.freeze_vision * self.vision - config.freeze_projector * self.projector

    def adapters(self, config: LearnerConfig) -> int:
        """Parameters of LoRA's (arXiv 2106.09685): rank x (inputs + outputs) for each matrix."""
        text = self.text
        sizes = {
            "q_proj": text.hidden + text.query,
            "k_proj": text.hidden + text.key_value,
            "v_proj": text.hidden + text.key_value,
            "o_proj": text.query + text.hidden,
            "gate_proj": text.hidden + text.intermediate,
            "up_proj": text.hidden + text.intermediate,
            "down_proj": text.intermediate + text.hidden,
        }
        return config.lora_rank * text.layers * sum(sizes.get(target, 0) for target in config.lora_targets)

    @classmethod
    def of(cls, path: str) -> "ModelShape":
        """A Hugging Face folder, or a model of `KNOWN` by its name on the hub.

        Raises:
            UnknownModel: it is neither.
        """
        if (Path(path) / "config.json").is_file():
            return cls.of_config(AutoConfig.from_pretrained(path), path)
        name = path.rsplit("/", 1)[-1].removesuffix("-Instruct").removesuffix("-Thinking")
        if name not in KNOWN:
            raise UnknownModel(
                f"model.path: {path!r} is no folder with a config.json, and no model of {', '.join(KNOWN)}; model.path=… names one"
            )
        return cls.of_config(KNOWN[name](), path)

    @classmethod
    def of_config(cls, config: Any, name: str) -> "ModelShape":
        """Builds the model without memory for its weights, and counts."""
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        visual, language, text = model.model.visual, model.model.language_model, config.text_config
        embeddings = model.get_input_embeddings()
        tied = model.lm_head.weight is embeddings.weight
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        projector = _count(visual.merger)
        tower = config.vision_config
        modules = [*language.layers, *visual.blocks, embeddings, model.lm_head]
        return cls(
            name=name,
            vision=_count(visual) - projector,
            projector=projector,
            embeddings=_count(embeddings),
            blocks=_count(language) - _count(embeddings),
            head=0 if tied else _count(model.lm_head),
            text=Blocks(
                layers=text.num_hidden_layers,
                hidden=text.hidden_size,
                query=text.num_attention_heads * width,
                key_value=text.num_key_value_heads * width,
                heads=text.num_attention_heads,
                key_value_heads=text.num_key_value_heads,
                intermediate=text.intermediate_size,
                gated=True,
                fused=False,
                query_key_norm=hasattr(language.layers[0].self_attn, "q_norm"),
                parameters=_count(language.layers[0]),
            ),
            tower=Blocks(
                layers=tower.depth,
                hidden=tower.hidden_size,
                query=tower.hidden_size,
                key_value=tower.hidden_size,
                heads=tower.num_heads,
                key_value_heads=tower.num_heads,
                intermediate=tower.intermediate_size,
                gated=hasattr(visual.blocks[0].mlp, "gate_proj"),
                fused=True,
                query_key_norm=False,
                parameters=_count(visual.blocks[0]),
            ),
            vocabulary=text.vocab_size,
            patch_values=tower.in_channels * tower.temporal_patch_size * math.prod([tower.patch_size] * 2),
            patches_per_token=tower.spatial_merge_size**2,
            largest=max(map(_count, modules)),
            num_tensors=len(list(model.parameters())),
        )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
