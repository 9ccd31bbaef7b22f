"""A random Qwen3-VL folder for tests: tokenizer, views and image processor of `tests.support.tiny`, and weights of its own kind."""

from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from arm_rl.demo import model as judge
from tests.support.tiny import spread


def build(folder: Path, *, seed: int = 0) -> Path:
    """Writes the whole folder; equal seeds give equal weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = judge.build_tokenizer()
    video = Qwen3VLVideoProcessor(patch_size=judge.PATCH, merge_size=judge.MERGE, temporal_patch_size=2)
    Qwen3VLProcessor(judge.image_processor(), tokenizer, video, chat_template=tokenizer.chat_template).save_pretrained(
        folder
    )
    judge.image_processor().save_pretrained(folder)
    model(tokenizer, seed=seed).save_pretrained(folder)
    return folder


def model(tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> Qwen3VLForConditionalGeneration:
    """The model alone, float32; two of its three layers see the images' features of two layers of the tower."""
    ids = dict(zip(judge.QWEN_TOKENS, tokenizer.convert_tokens_to_ids(list(judge.QWEN_TOKENS)), strict=True))
    config = Qwen3VLConfig(
        architectures=["Qwen3VLForConditionalGeneration"],
        dtype="float32",
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "patch_size": judge.PATCH,
            "spatial_merge_size": judge.MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
    )
    torch.manual_seed(seed)
    built = Qwen3VLForConditionalGeneration(config)
    spread(built, seed=seed)
    built.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
    )
    return built.eval()
