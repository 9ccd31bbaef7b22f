"""Attention of the vision tower over all images of a forward pass at once, without FlashAttention."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

# Transformers' vision towers call attention once for each image, or window, unless the implementation's name says "flash": then they
# call it once, with the boundaries. This takes that call and needs no kernel of its own. On two CPU cores, 80 small images went
# through the tower in a third of the time. To be removed when transformers batches the images itself.
PACKED_SDPA = "sdpa_packed_as_in_flash"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **_: object,
) -> tuple[Tensor, None]:
    """Full attention inside each segment: one batched call for all segments of a length.

    Args:
        query, key, value: [1, heads, patches, head size].
        cu_seq_lens_q: int [segments + 1], where segments begin and end.

    Returns:
        [1, patches, heads, head size], and no attention weights.
    """
    starts, lengths = cu_seq_lens_q[:-1], cu_seq_lens_q.diff()
    _, heads, patches, size = query.shape
    output = query.new_empty(patches, heads, size)
    for length in lengths.unique().tolist():
        chosen = starts[lengths == length]  # [segments of this length]
        rows = (chosen[:, None] + torch.arange(length, device=starts.device)).flatten()  # [segments * length]
        segments = [tensor[0, :, rows].view(heads, len(chosen), length, size).transpose(0, 1) for tensor in (query, key, value)]
        attended = functional.scaled_dot_product_attention(*segments, scale=scaling)  # [segments, heads, length, head size]
        output = output.index_copy(0, rows, attended.transpose(1, 2).reshape(-1, heads, size))
    return output[None], None


def use_packed_attention(vision_tower: nn.Module) -> None:
    """Switches a loaded vision tower from `sdpa` to packed attention; other implementations stay as they are."""
    if vision_tower.config._attn_implementation == "sdpa":
        AttentionInterface.register(PACKED_SDPA, packed_attention)
        vision_tower.config._attn_implementation = PACKED_SDPA
