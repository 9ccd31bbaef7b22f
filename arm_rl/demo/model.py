"""Builds the small judge: a Qwen2.5-VL of 0.7 million parameters with its own tokenizer and processor, as a Hugging Face folder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from arm_rl.demo import phrases
from arm_rl.demo.pixels import MERGE, PATCH, VIEW
from arm_rl.demo.tasks import Track
from arm_rl.demo.tracks import TILES, misfits

QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
FORMAT_TOKENS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<answer>",
    "</answer>",
)
# A number that stands alone and the name of a document or a text are tokens of their own; the digits inside other names are not.
ISOLATED = r"(?<!\w)(?:(?:doc|text)_)?\d+(?!\w)"
VOCABULARY = 4096  # entries at most; the merges run out before
HIDDEN = 128  # of the language model
VISION_HIDDEN = 64


def build(folder: Path, seed: int = 0, tracks: Sequence[Track] = TILES, tools: Sequence[str] = ()) -> Path:
    """Writes an untrained judge to `folder`; equal seeds give equal weights.

    Args:
        tracks: what its tokens are made for.
        tools: all that samples offer; by default the tracks' own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(tracks, tools)
    build_processor(tokenizer).save_pretrained(folder)
    image_processor().save_pretrained(folder)
    build_model(tokenizer, seed).save_pretrained(folder)
    return folder


def build_tokenizer(tracks: Sequence[Track] = TILES, tools: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the tracks' phrases, so that each constant part of a turn is one token: the list of tools as well."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(ISOLATED), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(tracks, tools or [track.tool for track in tracks]), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in QWEN_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in FORMAT_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in QWEN_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
        chat_template=Path(__file__).with_name("chat_template.jinja").read_text(),
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def _corpus(tracks: Sequence[Track], tools: Sequence[str]) -> Iterator[str]:
    """The constant parts between special tokens, each often enough for its merges to go all the way."""
    listed = f"<tools>{', '.join(tools)}</tools>"
    pieces = ["system\n", "user\n", "assistant\n", "\n", phrases.SYSTEM_PROMPT, listed]
    pieces += [f"system\n{phrases.SYSTEM_PROMPT}", f"system\n{phrases.SYSTEM_PROMPT}\n{listed}"]
    pieces += [text for track in tracks for text in track.requests()]
    pieces += [f"observation_{number}: " for number in (1, 2)]
    pieces += [phrases.NOTICE, phrases.LOOK, phrases.UNSURE, phrases.UNCLEAR, phrases.conclusion(0)]
    others = misfits(tracks)
    observations = [text for track in tracks for text in track.observations()]
    observations += [other.stray_look(np.random.default_rng(0)).text for other in others]
    pieces += [f"{text}{notice}" for text in observations if text for notice in ("", f"\n{phrases.NOTICE}")]
    pieces += [piece for track in (*tracks, *others) for turn in track.turns() for piece in _between_tags(turn)]
    pieces += _between_tags(phrases.answer_turn(1, phrases.UNSURE))
    for _ in range(2):
        yield from pieces
        for track in tracks:
            yield from track.words()


def _between_tags(text: str) -> list[str]:
    for tag in FORMAT_TOKENS:
        text = text.replace(tag, "\0")
    return [piece for piece in text.split("\0") if piece]


def image_processor() -> Qwen2VLImageProcessor:
    """Shows every image at VIEW x VIEW pixels (of its area; the shape is kept)."""
    return Qwen2VLImageProcessor(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": VIEW * VIEW, "longest_edge": VIEW * VIEW},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLProcessor:
    """Images and text together; the video part is there because the class wants one."""
    return Qwen2_5_VLProcessor(
        image_processor(),
        tokenizer,
        Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=MERGE, temporal_patch_size=2),
        chat_template=tokenizer.chat_template,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """The model with fresh weights, float32."""
    ids = dict(zip(QWEN_TOKENS, tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS)), strict=True))
    config = Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        dtype="float32",
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": 128,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": VIEW,
            "fullatt_block_indexes": [0, 1],
            "out_hidden_size": HIDDEN,
        },
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    initialise(model)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
    )
    return model


OUTPUTS = ("o_proj", "down_proj", "attn.proj")  # what is added to the residual stream


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Fresh weights for a narrow model: a linear layer's at std fan_in^-0.5, half of that where it adds to the residual stream.

    The library's own 0.02 is made for wide models; at this width it stays at chance for thousands of samples.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_(std=0.1)
        elif isinstance(module, nn.Linear | nn.Conv3d) and name != "lm_head":
            fan_in = module.weight[0].numel()
            module.weight.normal_(std=fan_in**-0.5 * (0.5 if name.endswith(OUTPUTS) else 1.0))
            if module.bias is not None:
                module.bias.zero_()


def load(folder: Path) -> tuple[Qwen2_5_VLForConditionalGeneration, PreTrainedTokenizerFast]:
    """The model, float32, and its tokenizer."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)
