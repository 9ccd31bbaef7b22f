"""Random models of the judge's kind in any size, and random trajectories for them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image as PILImage
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from arm_rl.core.images import Image
from arm_rl.core.resize import ViewSize
from arm_rl.core.types import TrainingSample
from arm_rl.demo import model as judge

FACTOR = judge.PATCH * judge.MERGE  # pixels a side of an image token
HEAD = 32  # width of an attention head in the judge
TEXT = (8, 8)  # tokens of a prompt before and after its image
SAMPLED, OBSERVED = (14, 6), (4, 4)  # tokens of the two turns; of the observation before and after its image


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Sizes of the language model; the vision tower is always the judge's."""

    hidden: int = judge.HIDDEN
    layers: int = 3
    intermediate: int = 256


def build(folder: Path, size: ModelSize = ModelSize(), seed: int = 0) -> int:
    """Write a Hugging Face folder with random float32 weights and return the number of parameters."""
    judge.build(folder, seed)
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    text = config.text_config
    text.hidden_size, text.num_hidden_layers, text.intermediate_size = size.hidden, size.layers, size.intermediate
    text.num_attention_heads, text.num_key_value_heads = size.hidden // HEAD, size.hidden // HEAD // 2
    text.layer_types = ["full_attention"] * size.layers
    config.vision_config.out_hidden_size = size.hidden
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    judge.initialise(model)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True, kw_only=True)
class SyntheticTrajectories:
    """Random trajectories of two turns: a prompt with an image, a call, an observation with an image of its own, an answer."""

    num_groups: int
    group_size: int
    prompt_pixels: int = judge.VIEW  # a side of the prompt's image
    share_prompts: bool = True  # as `learner.shares_prompts` says

    @property
    def view(self) -> ViewSize:
        """Size limits that leave every image as it is."""
        return ViewSize(factor=FACTOR, min_pixels=judge.VIEW**2, max_pixels=max(self.prompt_pixels, judge.VIEW) ** 2)

    def make(self, folder: Path, seed: int = 0) -> tuple[list[TrainingSample], dict[str, Image]]:
        """Return the samples, all of one length, and their images by key."""
        tokenizer = AutoTokenizer.from_pretrained(folder)
        vision = [
            tokenizer.convert_tokens_to_ids(name) for name in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
        ]
        source = random.Random(seed)
        samples, images = [], {}
        for _ in range(self.num_groups):
            shown = _noise(source, self.prompt_pixels)
            prompt = [*_text(source, TEXT[0]), *self._shown(shown, vision), *_text(source, TEXT[1])]
            images[shown.key] = shown
            for _ in range(self.group_size):
                crop = _noise(source, judge.VIEW)
                images[crop.key] = crop
                observation = [*_text(source, OBSERVED[0]), *self._shown(crop, vision), *_text(source, OBSERVED[1])]
                samples.append(self._sample(source, prompt, observation, (shown, crop)))
        return samples, images

    def _shown(self, image: Image, vision: Sequence[int]) -> list[int]:
        start, pad, end = vision
        return [start, *[pad] * self.view.num_tokens(*image.pil().size), end]

    def _sample(
        self, source: random.Random, prompt: Sequence[int], observation: Sequence[int], images: tuple[Image, Image]
    ) -> TrainingSample:
        first, last = (_text(source, length) for length in SAMPLED)
        mask = [False] * len(prompt) + [True] * len(first) + [False] * len(observation) + [True] * len(last)
        advantage = source.uniform(-1.5, 1.5)
        return TrainingSample(
            token_ids=(*prompt, *first, *observation, *last),
            loss_mask=tuple(mask),
            logprobs=tuple(source.uniform(-7.0, -4.0) if on else 0.0 for on in mask),
            advantages=tuple(advantage if on else 0.0 for on in mask),
            call_forbidden=(False,) * len(mask),
            image_keys=tuple(image.key for image in images),
            image_tokens=tuple(self.view.num_tokens(*image.pil().size) for image in images),
            num_prompt_tokens=len(prompt) if self.share_prompts else 0,
            num_prompt_images=int(self.share_prompts),
        )


def _noise(source: random.Random, side: int) -> Image:
    return Image.from_pil(PILImage.frombytes("RGB", (side, side), source.randbytes(3 * side * side)))


def _text(source: random.Random, length: int) -> list[int]:
    return [source.randrange(256) for _ in range(length)]  # ids of plain bytes
