"""Attention over a packed row: each prompt is computed once, and each branch reaches its prompt and itself.

The row is cut into calls of PyTorch's attention that have flash kernels on a GPU: causal over a prompt, and lower-right causal for a
branch over (prompt, branch). Neighbours of one length, and of one prompt if they are branches, share a call. No mask of the row is
made, and no call sees padding.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from arm_rl.core.micro_batch import Segment

_ATTENTION = "packed_row"


def use_packed_attention(language_model: Any) -> None:
    """Let a language model of transformers read packed rows; its forward pass then needs `segments`.

    Raises:
        ValueError: If a layer of the model has a sliding window.
    """
    config = language_model.config
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ValueError(
            "model.path: a layer of the model has sliding-window attention, which the learner does not have"
        )
    config._attn_implementation = _ATTENTION


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    segments: Sequence[Segment],
    scaling: float,
    dropout: float = 0.0,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Compute attention within the segments of a packed row of T tokens.

    Args:
        module: Not used.
        query: [1, heads, T, width].
        key: [1, key-value heads, T, width].
        value: [1, key-value heads, T, width].
        attention_mask: None.
        segments: Segments of the row.
        scaling: Factor of the products.
        dropout: Probability that an attention weight is dropped.
        rest: Not used.

    Returns:
        [1, T, heads, width], and None in place of attention weights.
    """
    runs = [(segment, len(list(run))) for segment, run in itertools.groupby(segments)]
    lengths = [segment.length * number for segment, number in runs]
    # The gradient of a split is one concatenation; that of a slice is as large as the row.
    parts = [tensor[0].split(lengths, dim=1) for tensor in (query, key, value)]
    read: list[
        tuple[Tensor, Tensor]
    ] = []  # keys and values of each segment so far, [1, key-value heads, length, width]
    outputs = []
    for (segment, number), *of_run in zip(runs, *parts, strict=True):
        # [number, heads, length, width]
        q, k, v = (part.unflatten(1, (number, segment.length)).transpose(0, 1) for part in of_run)
        read += zip(k.split(1), v.split(1), strict=True)
        if segment.prompt is not None:
            before = [tensor.expand(number, -1, -1, -1) for tensor in read[segment.prompt]]
            k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
        outputs.append(_causal(q, k, v, scale=scaling, dropout=dropout).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None], None


def _causal(query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float) -> Tensor:
    """Compute attention in which the last query sees all keys, the one before it all but the last key, and so on.

    Args:
        query: [B, heads, Q, width].
        key: [B, key-value heads, K, width], K at least Q; the value's shape is the same.
        value: See key.
        scale: Factor of the products.
        dropout: Probability that an attention weight is dropped.

    Returns:
        [B, heads, Q, width].
    """
    num_queries, num_keys = query.shape[2], key.shape[2]
    # Flash kernels read grouped heads as they are. A GPU has none for float32: keys are copied to each head, for this call alone.
    grouped = not query.is_cuda or query.dtype != torch.float32
    if not grouped:
        key, value = (one.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for one in (key, value))
    options: dict[str, Any] = {"scale": scale, "dropout_p": dropout, "enable_gqa": grouped}
    if num_queries == num_keys:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, **options)
    # PyTorch's lower-right bias takes CUDA's kernels; the CPU's fused kernel takes a mask in its place.
    bias: Tensor
    if query.is_cuda:
        bias = causal_lower_right(num_queries, num_keys)
    else:
        bias = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, **options)


AttentionInterface.register(_ATTENTION, attend)
