"""Random images, prompts and training samples for the random models."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PILImage
from transformers import AutoConfig, AutoTokenizer

from arm_rl.core.images import Image
from arm_rl.core.resize import ViewSize
from arm_rl.core.types import TrainingSample


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenIds:
    """Special ids of a random model, and the number of ids that its tokenizer knows as text."""

    vision_start: int
    image_pad: int
    vision_end: int
    never_sampled: tuple[int, ...]
    num_text: int

    @classmethod
    def of(cls, folder: Path) -> "TokenIds":
        """Read a model's folder."""
        config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        ids = (
            config.vision_start_token_id,
            config.image_token_id,
            config.vision_end_token_id,
            config.video_token_id,
        )
        return cls(
            vision_start=ids[0],
            image_pad=ids[1],
            vision_end=ids[2],
            never_sampled=ids,
            num_text=min(tokenizer.added_tokens_decoder, default=len(tokenizer)),
        )


def noise(source: random.Random, side: int) -> Image:
    """Return an image of random pixels, `side` pixels wide and high."""
    return Image.from_pil(PILImage.frombytes("RGB", (side, side), source.randbytes(3 * side * side)))


def prompt(
    source: random.Random, ids: TokenIds, view: ViewSize, images: Sequence[Image], num_tokens: int
) -> tuple[int, ...]:
    """Return a prompt that shows the images and has random text up to `num_tokens`, a few at least."""
    shown: list[int] = []
    for image in images:
        shown += [ids.vision_start, *[ids.image_pad] * view.num_tokens(*image.size), ids.vision_end]
    rest = max(num_tokens - len(shown), 4)
    return (*(source.randrange(ids.num_text) for _ in range(rest)), *shown)


def training_sample(
    source: random.Random,
    ids: TokenIds,
    view: ViewSize,
    images: Sequence[Image],
    *,
    prompt_ids: Sequence[int],
    sampled_ids: Sequence[int],
    logprobs: Sequence[float] | None = None,
    key: str = "",
) -> TrainingSample:
    """Return a session of one turn with a random advantage.

    Args:
        source: Source of the advantage.
        ids: Special ids of the model.
        view: Sizes at which the model sees images.
        images: Images of the prompt.
        prompt_ids: Prompt, images expanded.
        sampled_ids: Ids that carry loss.
        logprobs: Log-probabilities of the sampled ids; by default, those of a uniform distribution.
        key: Key of the sample.
    """
    before, length = (0.0,) * len(prompt_ids), len(sampled_ids)
    advantage = source.choice((-1.0, 1.0))
    return TrainingSample(
        key=key,
        token_ids=(*prompt_ids, *sampled_ids),
        loss_mask=(False,) * len(prompt_ids) + (True,) * length,
        logprobs=(*before, *(logprobs or (-7.0,) * length)),
        advantages=(*before, *(advantage,) * length),
        image_keys=tuple(image.key for image in images),
        image_tokens=tuple(view.num_tokens(*image.size) for image in images),
        num_prompt_tokens=len(prompt_ids),
        num_prompt_images=len(images),
    )


def random_samples(
    seed: int, ids: TokenIds, view: ViewSize, *, number: int, num_tokens: int, side: int
) -> tuple[list[TrainingSample], dict[str, Image]]:
    """Return samples of one image each with `num_tokens` tokens, a fifth of them with loss, and their images by key."""
    source = random.Random(seed)
    images: dict[str, Image] = {}
    samples = []
    for _ in range(number):
        image = noise(source, side)
        images[image.key] = image
        num_sampled = max(num_tokens // 5, 1)
        sampled = tuple(source.randrange(ids.num_text) for _ in range(num_sampled))
        before = prompt(source, ids, view, [image], num_tokens - num_sampled)
        samples.append(training_sample(source, ids, view, [image], prompt_ids=before, sampled_ids=sampled))
    return samples, images
