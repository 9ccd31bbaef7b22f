"""Random training samples for the tiny model of `tests.support.tiny`: text, images and sampled turns at random places."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PILImage
from transformers import AutoTokenizer

from arm_rl.core.images import Image
from arm_rl.core.resize import ViewSize
from arm_rl.core.types import TrainingSample
from tests.support import tiny

VIEW = ViewSize(factor=tiny.VIEW_FACTOR, min_pixels=32 * 32, max_pixels=tiny.VIEW_PIXELS)
NUM_BYTES = 256  # ids of plain bytes come first in the tiny vocabulary


@dataclass(frozen=True)
class Ids:
    """Special ids of a tiny model."""

    vision_start: int
    vision_end: int
    image_pad: int
    tool_call: int

    @classmethod
    def of(cls, folder: Path) -> "Ids":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<tool_call>")
        return cls(*(tokenizer.convert_tokens_to_ids(name) for name in names))

    @property
    def never_sampled(self) -> tuple[int, ...]:
        return (self.vision_start, self.vision_end, self.image_pad)


def image(seed: int, width: int = 64, height: int = 64) -> Image:
    """Noise."""
    return Image.from_pil(PILImage.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height)))


def sample(ids: Ids, images: Sequence[Image], *, seed: int, length: int = 12) -> TrainingSample:
    """Each image with a few sampled tokens after it; `length` tokens beside the images."""
    source = random.Random(seed)
    tokens: list[int] = [source.randrange(NUM_BYTES) for _ in range(3)]
    mask = [False] * 3
    for shown in images:
        pads = VIEW.num_tokens(*shown.pil().size)
        tokens += [ids.vision_start, *[ids.image_pad] * pads, ids.vision_end]
        mask += [False] * (pads + 2)
        tokens += [source.randrange(NUM_BYTES) for _ in range(2)]
        mask += [True] * 2
    rest = max(2, length - 3 - 2 * len(images))
    tokens += [source.randrange(NUM_BYTES) for _ in range(rest)]
    mask += [source.random() < 0.6 for _ in range(rest - 1)] + [True]
    forbidden = [on and source.random() < 0.5 for on in mask]
    advantage = source.uniform(-1.5, 1.5)
    return TrainingSample(
        token_ids=tuple(tokens),
        loss_mask=tuple(mask),
        logprobs=tuple(source.uniform(-7.0, -4.0) if on else 0.0 for on in mask),
        advantages=tuple(advantage if on else 0.0 for on in mask),
        call_forbidden=tuple(forbidden),
        image_keys=tuple(shown.key for shown in images),
    )


def group(
    ids: Ids,
    prompt_images: Sequence[Image],
    row_images: Sequence[Sequence[Image]],
    *,
    seed: int,
    prompt_length: int = 10,
    lengths: Sequence[int] | None = None,
) -> list[TrainingSample]:
    """Samples that share a prompt; each row with images of its own. The first token of a row carries loss, but for the first row's.

    Args:
        ids: Special ids of the model.
        prompt_images: Images of the prompt.
        row_images: Images of each row.
        seed: Seed of the tokens.
        prompt_length: Tokens of the prompt beside its images.
        lengths: Tokens of each row beside its images; growing ones by default.
    """
    prompt = sample(ids, prompt_images, seed=seed, length=prompt_length)
    length = len(prompt.token_ids)
    members = []
    for number, shown in enumerate(row_images):
        row_length = 6 + 3 * number if lengths is None else lengths[number]
        row = sample(ids, shown, seed=100 * seed + number, length=row_length)
        mask = (number > 0, *row.loss_mask[1:])
        advantage = 0.3 + number * (-1) ** number
        members.append(
            TrainingSample(
                token_ids=prompt.token_ids + row.token_ids,
                loss_mask=(False,) * length + mask,
                logprobs=(0.0,) * length + tuple(-5.0 if on else 0.0 for on in mask),
                advantages=(0.0,) * length + tuple(advantage if on else 0.0 for on in mask),
                call_forbidden=(False,) * length + row.call_forbidden,
                image_keys=prompt.image_keys + row.image_keys,
                num_prompt_tokens=length,
                num_prompt_images=len(prompt.image_keys),
            )
        )
    return members
