"""A random model folder for tests: the digits judge's architecture, tokenizer and processor, and weights under which everything matters."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from arm_rl.demo import model as judge

VIEW_FACTOR = judge.PATCH * judge.MERGE  # pixels a side of an image token
VIEW_PIXELS = judge.VIEW**2  # pixels of every view


def build(folder: Path, *, seed: int = 0) -> Path:
    """Writes the whole folder; equal seeds give equal weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = judge.build_tokenizer()
    judge.build_processor(tokenizer).save_pretrained(folder)
    judge.image_processor().save_pretrained(folder)
    model(tokenizer, seed=seed).save_pretrained(folder)
    return folder


def model(tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """The model alone, float32."""
    built = judge.build_model(tokenizer, seed)
    spread(built, seed=seed)
    return built.eval()


@torch.no_grad()
def spread(module: nn.Module, *, seed: int) -> None:
    """Draws all weights anew, biases and norms too, so that images, positions and every layer move the log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.copy_(1.0 + 0.1 * noise)
        else:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
