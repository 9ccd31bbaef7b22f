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

    @property
    def view(self) -> ViewSize:
        """Size limits that leave every image as it is."""
        return ViewSize(factor=FACTOR, min_pixels=judge.VIEW**2, max_pixels=max(self.prompt_pixels, judge.VIEW) ** 2)

    def make(self, folder: Path, seed: int = 0) -> tuple[list[TrainingSample], dict[str, Image]]:
        """Return the samples, all of one length, and their images by key."""
        vision, source = _vision_ids(folder), random.Random(seed)
        samples, images = [], {}
        for _ in range(self.num_groups):
            shown = _noise(source, self.prompt_pixels)
            prompt = [*_text(source, TEXT[0]), *_shown(shown, vision, self.view), *_text(source, TEXT[1])]
            images[shown.key] = shown
            for _ in range(self.group_size):
                crop = _noise(source, judge.VIEW)
                images[crop.key] = crop
                observation = [
                    *_text(source, OBSERVED[0]),
                    *_shown(crop, vision, self.view),
                    *_text(source, OBSERVED[1]),
                ]
                samples.append(self._sample(source, prompt, observation, (shown, crop)))
        return samples, images

    def _sample(
        self, source: random.Random, prompt: Sequence[int], observation: Sequence[int], images: tuple[Image, Image]
    ) -> TrainingSample:
        first, last = (_text(source, length) for length in SAMPLED)
        mask = [False] * len(prompt) + [True] * len(first) + [False] * len(observation) + [True] * len(last)
        return _training_sample(source, [*prompt, *first, *observation, *last], mask, images, self.view, len(prompt))


@dataclass(frozen=True, kw_only=True)
class SyntheticAnswers:
    """Random trajectories of one turn, of different lengths; all of a group after one prompt."""

    num_groups: int
    group_size: int
    prompt_tokens: tuple[int, int]  # fewest and most text tokens of a prompt
    sampled_tokens: tuple[int, int]  # fewest and most sampled tokens
    prompt_pixels: int = 0  # a side of the prompt's image; 0: no image

    @property
    def view(self) -> ViewSize:
        """Size limits that leave every image as it is."""
        return ViewSize(factor=FACTOR, min_pixels=judge.VIEW**2, max_pixels=max(self.prompt_pixels, judge.VIEW) ** 2)

    def make(self, folder: Path, seed: int = 0) -> tuple[list[TrainingSample], dict[str, Image]]:
        """Return the samples and their images by key."""
        vision, source = _vision_ids(folder), random.Random(seed)
        samples: list[TrainingSample] = []
        images: dict[str, Image] = {}
        for _ in range(self.num_groups):
            prompt, shown = _text(source, source.randint(*self.prompt_tokens)), []
            if self.prompt_pixels:
                shown = [_noise(source, self.prompt_pixels)]
                images[shown[0].key] = shown[0]
                prompt += _shown(shown[0], vision, self.view)
            for _ in range(self.group_size):
                sampled = _text(source, source.randint(*self.sampled_tokens))
                mask = [False] * len(prompt) + [True] * len(sampled)
                samples.append(
                    _training_sample(source, [*prompt, *sampled], mask, shown, self.view, len(prompt), len(shown))
                )
        return samples, images


def _training_sample(
    source: random.Random,
    token_ids: Sequence[int],
    mask: Sequence[bool],
    images: Sequence[Image],
    view: ViewSize,
    num_prompt_tokens: int,
    num_prompt_images: int = 1,
) -> TrainingSample:
    advantage = source.uniform(-1.5, 1.5)
    return TrainingSample(
        token_ids=tuple(token_ids),
        loss_mask=tuple(mask),
        logprobs=tuple(source.uniform(-7.0, -4.0) if on else 0.0 for on in mask),
        advantages=tuple(advantage if on else 0.0 for on in mask),
        call_forbidden=(False,) * len(mask),
        image_keys=tuple(image.key for image in images),
        image_tokens=tuple(view.num_tokens(*image.pil().size) for image in images),
        num_prompt_tokens=num_prompt_tokens,
        num_prompt_images=num_prompt_images,
    )


def _vision_ids(folder: Path) -> list[int]:
    """Return the ids that begin an image, stand for an image token, and end an image."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer.convert_tokens_to_ids(name) for name in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")]


def _shown(image: Image, vision: Sequence[int], view: ViewSize) -> list[int]:
    start, pad, end = vision
    return [start, *[pad] * view.num_tokens(*image.pil().size), end]


def _noise(source: random.Random, side: int) -> Image:
    return Image.from_pil(PILImage.frombytes("RGB", (side, side), source.randbytes(3 * side * side)))


def _text(source: random.Random, length: int) -> list[int]:
    return [source.randrange(256) for _ in range(length)]  # ids of plain bytes
