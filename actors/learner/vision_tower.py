"""Hugging Face's vision tower made faster: the same weights, the same names, the same results.

Images of one size are attended to together, where transformers calls attention once an image; and patches are embedded by a matrix
product, where transformers has a convolution with one place for each patch.
"""

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

# transformers hands the bounds of the images to functions with "flash" in their name alone
_ATTENTION = "flash_of_equals"


def speed_up(visual: Any) -> None:
    """Changes a vision tower in place."""
    if visual.config._attn_implementation == "sdpa":
        visual.config._attn_implementation = _ATTENTION
    if isinstance(visual.patch_embed.proj, nn.Conv3d):
        visual.patch_embed.proj = PatchEmbedding(visual.patch_embed.proj)


class PatchEmbedding(nn.Module):
    """A convolution over what is one patch already."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight = convolution.weight  # [H, channels, frames, rows, columns]
        self.bias = convolution.bias

    def forward(self, patches: Tensor) -> Tensor:
        """Embeds patches [N, channels, frames, rows, columns]: [N, H]."""
        return functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **rest: Any
) -> tuple[Tensor, None]:
    """Attention within each image (or window), neighbours of one length at a time.

    Args:
        module: not used.
        query: [1, heads, patches, width], and so are key and value.
        attention_mask: none.
        rest: `cu_seq_lens_q`, where images begin and the last one ends, int [images + 1]; `scaling` of the products.

    Returns:
        [1, patches, heads, width].
    """
    lengths = torch.diff(rest["cu_seq_lens_q"]).tolist()
    runs = [(length, len(list(run))) for length, run in itertools.groupby(lengths)]
    parts = [tensor[0].split([length * number for length, number in runs], dim=1) for tensor in (query, key, value)]
    outputs = []
    for (length, number), *qkv in zip(runs, *parts, strict=True):
        # [number, heads, length, width]
        q, k, v = (part.unflatten(1, (number, length)).transpose(0, 1) for part in qkv)
        attended = functional.scaled_dot_product_attention(q, k, v, scale=rest["scaling"])
        outputs.append(attended.transpose(1, 2).flatten(0, 1))  # [number * length, heads, width]
    return torch.cat(outputs)[None], None


AttentionInterface.register(_ATTENTION, attend)
