"""Random models: Qwen2.5-VL-7B's widths and vocabulary with fewer layers on a GPU, the demo's tiny judge on CPUs."""

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)

from arm_rl.demo import model as judge
from arm_rl.gpu_proof.frame import Report
from arm_rl.gpu_proof.scale import Proof
from arm_rl.plan import memory
from arm_rl.plan.hardware import GIB
from arm_rl.plan.shapes import KNOWN, ModelShape

WIDTHS = "Qwen2.5-VL-7B"  # of `arm_rl.plan.shapes.KNOWN`
LAYERS = (8, 6, 4, 2)  # of its 28; the first number that fits the GPU's memory is taken
THIN_LAYERS, THIN_VISION_LAYERS = 2, 4
UNKNOWN_TOKENS = 1000  # ids beyond the tokenizer's, as Qwen's own models have a few hundred
FREE_SHARE = 0.1  # of the GPU's memory, kept free when layers are chosen
COMPLETE = "complete"  # name of the file that says that a folder is whole


def run(proof: Proof) -> Report:
    """Write the random models, unless an earlier proof has."""
    written = []
    for folder in (proof.model_folder, proof.thin_folder):
        if not (folder / COMPLETE).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            write(proof, folder, thin=folder == proof.thin_folder)
            written.append(folder.name)
    shape = ModelShape.of(str(proof.model_folder))
    numbers = {"parameters": shape.parameters, "layers": shape.text.layers, "written": written}
    return Report(
        line=f"{shape.text.layers} layers, {shape.parameters / 1e9:.3g}B parameters in {proof.model_folder}",
        numbers=numbers,
    )


def write(proof: Proof, folder: Path, *, thin: bool) -> None:
    """Write a model's folder: tokenizer, processors and random weights."""
    folder.mkdir(parents=True)
    tokenizer = judge.build_tokenizer()
    base = judge.build_model(tokenizer, seed=0)
    config = _gpu_config(proof, base.config, len(tokenizer), thin=thin) if proof.on_gpu else copy.deepcopy(base.config)
    if not proof.on_gpu:
        config.text_config.vocab_size += UNKNOWN_TOKENS
    _write_processor(proof, tokenizer, config, folder)
    model = _random_model(proof, config)
    model.generation_config = base.generation_config
    model.save_pretrained(folder, max_shard_size="100GB")
    (folder / COMPLETE).write_text("")


def _random_model(proof: Proof, config: Qwen2_5_VLConfig) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, proof.scale.dtype))
    try:
        with torch.device(proof.device):
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    judge.initialise(model)
    return model


def _write_processor(proof: Proof, tokenizer: PreTrainedTokenizerFast, config: Any, folder: Path) -> None:
    """Write the demo's processor with the model's patches, which shows images as they are."""
    vision, view = config.vision_config, proof.view
    size = {"shortest_edge": view.min_pixels, "longest_edge": view.max_pixels}
    images = Qwen2VLImageProcessor(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        size=size,
    )
    processor = judge.build_processor(tokenizer)
    processor.image_processor = images
    processor.save_pretrained(folder)
    images.save_pretrained(folder)
    AutoProcessor.from_pretrained(folder)  # raises here, not in an engine


def _gpu_config(proof: Proof, base: Any, num_tokens: int, *, thin: bool) -> Qwen2_5_VLConfig:
    """Return the configuration of a model with the published widths and the demo's tokenizer."""
    config = KNOWN[WIDTHS]()
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        setattr(config, name, getattr(base, name))
    config.architectures, config.dtype = base.architectures, proof.scale.dtype
    text, vision = config.text_config, config.vision_config
    text.bos_token_id, text.eos_token_id = None, base.text_config.eos_token_id
    text.pad_token_id = base.text_config.pad_token_id
    text.max_position_embeddings = 128000
    text.rope_parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    if thin:
        text.vocab_size = num_tokens + UNKNOWN_TOKENS
        vision.depth, vision.fullatt_block_indexes = THIN_VISION_LAYERS, [THIN_VISION_LAYERS - 1]
        return _with_layers(config, THIN_LAYERS)
    total = torch.cuda.mem_get_info()[1] * (1 - FREE_SHARE)
    for layers in LAYERS:
        shape = ModelShape.of_config(_with_layers(config, layers), WIDTHS)
        if memory.on_gpu(memory.learner(shape, proof.learner_config())) < total:
            return config
    raise ValueError(
        f"a GPU with {total / GIB:.0f} GiB is too small for {LAYERS[-1]} layers of {WIDTHS} and its optimizer"
    )


def _with_layers(config: Qwen2_5_VLConfig, layers: int) -> Qwen2_5_VLConfig:
    config.text_config.num_hidden_layers = layers
    config.text_config.layer_types = ["full_attention"] * layers
    return config
