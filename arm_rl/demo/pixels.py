"""Pixels for the small judge in plain numpy and torch: views, crops, patches, and its vision tower over equal images at once."""

import functools

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor
from torch.nn import functional
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    apply_rotary_pos_emb_vision,
)

from arm_rl.demo import scenes

VIEW = 64  # pixels a side of what the judge sees
PATCH = 8  # pixels a side of a patch
CELL_VIEW = VIEW // scenes.GRID  # pixels a side of a cell in it
MERGE = 2  # patches a side of an image token
SIDE = VIEW // PATCH  # patches a side
NUM_PATCHES = SIDE * SIDE
NUM_TOKENS = NUM_PATCHES // MERGE**2  # image tokens of a view


def resized_scene(scene: scenes.Scene) -> np.ndarray:
    """Return a scene as the judge sees it: (VIEW, VIEW, 3), uint8, within 1 of the resized drawing.

    A bicubic filter is linear and the engraving invisible to it, so the view is the background's, each tile's and each plain digit's share:
    ten times as fast.
    """
    total = _resize(scenes.background()).astype(np.float32)
    for tile in scene.tiles:
        total = total + _tile_share(tile.color, tile.row, tile.column)
        if tile.plain:
            top, left = tile.row * CELL_VIEW, tile.column * CELL_VIEW
            ink = _plain_share(tile.image)[..., None] * (scenes.INK - np.array(scenes.COLORS[tile.color]))
            total[top : top + CELL_VIEW, left : left + CELL_VIEW] += ink
    return np.clip(total, 0, 255).round().astype(np.uint8)


@functools.cache
def _tile_share(color: str, row: int, column: int) -> np.ndarray:
    """What a tile adds to the view of the background, (VIEW, VIEW, 3)."""
    canvas = scenes.background().copy()
    top, left, side = (
        row * scenes.CELL + scenes.MARGIN,
        column * scenes.CELL + scenes.MARGIN,
        scenes.CELL - 2 * scenes.MARGIN,
    )
    canvas[top : top + side, left : left + side] = scenes.COLORS[color]
    return _resize(canvas).astype(np.float32) - _resize(scenes.background())


@functools.cache
def _plain_share(image: int) -> np.ndarray:
    """A plain digit's ink in the view of its cell, (CELL_VIEW, CELL_VIEW): the filter reaches no further."""
    ink = np.zeros((scenes.CELL, scenes.CELL), dtype=np.float32)
    edge = (scenes.CELL - scenes.PLAIN) // 2
    ink[edge : edge + scenes.PLAIN, edge : edge + scenes.PLAIN] = scenes.plain_ink(image)
    return np.asarray(PILImage.fromarray(ink).resize((CELL_VIEW, CELL_VIEW), PILImage.Resampling.BICUBIC))


def _resize(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(PILImage.fromarray(pixels).resize((VIEW, VIEW), PILImage.Resampling.BICUBIC))


def make_patches(views: np.ndarray) -> Tensor:
    """Return what the image processor makes of views (N, VIEW, VIEW, 3), uint8: (N, NUM_PATCHES, 3 * PATCH * PATCH).

    One frame where the processor writes two equal ones: `encode` knows.
    """
    blocks = SIDE // MERGE
    scaled = (torch.from_numpy(views).float() / 255.0 - 0.5) / 0.25
    split = scaled.view(-1, blocks, MERGE, PATCH, blocks, MERGE, PATCH, 3)
    ordered = split.permute(0, 1, 4, 2, 5, 7, 3, 6)  # N, block row, block column, row, column, channel, y, x
    return ordered.reshape(len(views), NUM_PATCHES, -1)


def encode(tower: Qwen2_5_VisionTransformerPretrainedModel, pixel_patches: Tensor) -> Tensor:
    """Image tokens (N, NUM_TOKENS, hidden) of equal images, from patches (N, NUM_PATCHES, values).

    The same as the tower's own forward pass, but one call of attention for all images, and the two frames of a still image as one.
    """
    num_images = pixel_patches.shape[0]
    # (width, 3 * PATCH * PATCH): both frames see the same pixels
    filters = tower.patch_embed.proj.weight.sum(dim=2).flatten(1)
    hidden = functional.linear(pixel_patches.flatten(0, 1), filters)  # (N * NUM_PATCHES, width)
    cos, sin = tower.rotary_pos_emb(hidden, _positions())
    for block in tower.blocks:
        hidden = hidden + _attend(block.attn, block.norm1(hidden), cos, sin, num_images)
        hidden = hidden + block.mlp(block.norm2(hidden))
    return tower.merger(hidden).view(num_images, NUM_TOKENS, -1)


def _attend(attention: torch.nn.Module, hidden: Tensor, cos: Tensor, sin: Tensor, num_images: int) -> Tensor:
    query, key, value = attention.qkv(hidden).view(num_images, NUM_PATCHES, 3, attention.num_heads, -1).unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
    mixed = functional.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return attention.proj(mixed.transpose(1, 2).reshape(num_images * NUM_PATCHES, -1))


def _positions() -> Tensor:
    """Row and column of each patch, (NUM_PATCHES, 2), in the processor's order."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    blocks = SIDE // MERGE
    order = (blocks, MERGE, blocks, MERGE)
    return torch.stack([grid.reshape(order).permute(0, 2, 1, 3).flatten() for grid in (rows, columns)], dim=-1)
