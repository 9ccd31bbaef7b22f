"""Random training samples without a model: alone, and in groups that share a prompt."""

import random
from collections.abc import Sequence

from arm_rl.core.types import TrainingSample


def sample(length: int, num_loss: int = 1, images: tuple[str, ...] = (), seed: int = 0) -> TrainingSample:
    """Return a sample without a prompt, whose last tokens carry loss."""
    source = random.Random(seed)
    mask = [False] * (length - num_loss) + [True] * num_loss
    return TrainingSample(
        token_ids=tuple(source.randrange(1, 100) for _ in range(length)),
        loss_mask=tuple(mask),
        logprobs=tuple(-source.random() if on else 0.0 for on in mask),
        advantages=tuple(source.random() if on else 0.0 for on in mask),
        image_keys=images,
    )


def group(
    prompt: int, branches: Sequence[int], images: tuple[str, ...] = (), seed: int = 0, num_first: int = 1
) -> list[TrainingSample]:
    """Return samples that share a prompt of so many tokens with images of ten tokens; all but a branch's first tokens carry loss."""
    source = random.Random(seed)
    shared = (seed, *(source.randrange(100, 200) for _ in range(prompt - 1)))
    made = []
    for number, length in enumerate(branches):
        own = sample(length, length - num_first, seed=1000 * seed + number)
        made.append(
            TrainingSample(
                token_ids=shared + own.token_ids,
                loss_mask=(False,) * prompt + own.loss_mask,
                logprobs=(0.0,) * prompt + own.logprobs,
                advantages=(0.0,) * prompt + own.advantages,
                image_keys=images,
                image_tokens=(10,) * len(images),
                num_prompt_tokens=prompt,
                num_prompt_images=len(images),
            )
        )
    return made
