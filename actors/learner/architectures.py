"""What the families of models have of their own: Qwen2.5-VL shows an image to its language model at the input alone, Qwen3-VL (DeepStack,
arXiv 2406.04334) also after its first layers. Elsewhere an image's features are one tensor, with all that is shown side by side.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def image_features(model: Any, patches: Tensor, grids: Tensor) -> list[Tensor]:
    """Of each image: [its tokens, H], or [its tokens, H * (1 + layers)] where layers see it as well."""
    output = model.get_image_features(patches, grids)
    layers = getattr(output, "deepstack_features", None) or []
    return [torch.cat(parts, dim=-1) for parts in zip(output.pooler_output, *layers, strict=True)]


def show(embeddings: Tensor, is_image: Tensor, features: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Puts images into rows.

    Args:
        embeddings: [R, T, H].
        is_image: bool [R, T].
        features: [pads, H * (1 + layers)], in the order of the pads.

    Returns:
        The embeddings, and what else the language model is called with.
    """
    first, *layers = features.to(embeddings.dtype).split(embeddings.shape[-1], dim=-1)  # [pads, H] each
    shown = embeddings.masked_scatter(is_image[..., None], first)
    return shown, {"visual_pos_masks": is_image, "deepstack_visual_embeds": layers} if layers else {}


def projectors(visual: Any) -> Iterator[nn.Module]:
    """The layers that turn a tower's states into what a language model reads."""
    yield visual.merger
    yield from getattr(visual, "deepstack_merger_list", ())
