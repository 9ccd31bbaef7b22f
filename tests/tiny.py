"""A random Qwen2.5-VL model folder, small enough to be built in a second. For tests only: it has learned nothing."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
FORMAT_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<answer>", "</answer>")
VIEW_FACTOR = 16  # pixels a side of an image token
VIEW_PIXELS = 64 * 64  # pixels of every square image's view


def build(folder: Path, *, seed: int = 0, tied: bool = True) -> Path:
    """Writes weights, configuration, tokenizer and image processor to `folder`; equal seeds give equal weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    model(tokenizer, seed=seed, tied=tied).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "patch_size": VIEW_FACTOR // 2,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": VIEW_PIXELS, "longest_edge": VIEW_PIXELS},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    end_ids = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end_ids, "pad_token_id": end_ids[1]}))
    return folder


def model(tokenizer: Qwen2Tokenizer, *, seed: int = 0, tied: bool = True) -> Qwen2_5_VLForConditionalGeneration:
    """The model alone: random weights, float32."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    torch.manual_seed(seed)
    built = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 4096,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
                "tie_word_embeddings": tied,
                "bos_token_id": ids["<|endoftext|>"],
                "eos_token_id": ids["<|im_end|>"],
            },
            vision_config={
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_heads": 2,
                "patch_size": VIEW_FACTOR // 2,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 64,
                "fullatt_block_indexes": [0, 1],
                "out_hidden_size": 64,
            },
            tie_word_embeddings=tied,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
    )
    spread(built, seed=seed)
    return built.eval()


def spread(built: torch.nn.Module, *, seed: int) -> None:
    """Draws all weights anew, wide enough that images, positions and every layer move the log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise + 1.0 if parameter.ndim == 1 else noise)


def _tokenizer() -> Qwen2Tokenizer:
    """A token a byte, and the special tokens under Qwen's names."""
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    raw.add_tokens([AddedToken(token, normalized=False, special=False) for token in FORMAT_TOKENS])
    return Qwen2Tokenizer(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        bos_token=None,
    )
