"""Training samples -> one packed row of tensors, without padding, in which a prompt that several samples share is stored once.

    [a sample alone] ... [prompt | branch 1 | ... | branch G] [prompt | branch 1 | ...] ...

A branch is what follows a shared prompt: one trajectory's turns and observations. Attention of a branch reaches its prompt and
itself, so that every token sees what it would see if each trajectory were computed alone.
"""

import dataclasses
import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from arm_rl.core.errors import NonFiniteError
from arm_rl.core.types import TrainingSample


class Segment(NamedTuple):
    """A part of a packed row: a prompt, a branch, or a sample alone."""

    length: int  # tokens
    prompt: int | None = None  # a branch's prompt, as an index of the row's segments


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """A packed row of T tokens, N of which carry loss; those of one sample are adjacent, samples are in the given order."""

    token_ids: Tensor  # int64 [T]
    segments: tuple[Segment, ...]  # lengths add up to T
    loss_positions: Tensor  # int64 [N], indices of the loss tokens in the row
    predictors: Tensor  # int64 [N], indices of the tokens whose hidden states predict them
    sequences: Tensor  # int64 [N], index of each loss token's sample
    logprobs: Tensor  # float32 [N], of the behaviour policy
    advantages: Tensor  # float32 [N]
    proximal_logprobs: Tensor | None  # float32 [N]; None where the samples have none
    call_forbidden: Tensor  # bool [N]
    image_keys: tuple[str, ...] = ()  # distinct images
    shown: tuple[int, ...] = ()  # for each image-token span of the row, in order: index of its image in image_keys

    def to(self, device: torch.device | str) -> Self:
        """Return the micro-batch with all tensors on a device."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        moved = {
            name: value.to(device, non_blocking=True) for name, value in values.items() if isinstance(value, Tensor)
        }
        return dataclasses.replace(self, **moved)


def collate(samples: Sequence[TrainingSample]) -> MicroBatch:
    """Pack samples into one row; of no samples, make a row of one token without loss, so that every rank has work to do.

    Raises:
        NonFiniteError: If a log-probability or an advantage is not finite.
    """
    members: dict[Hashable, list[int]] = {}  # indices of the samples of each prompt
    for number, sample in enumerate(samples):
        members.setdefault(sample.prompt_key, []).append(number)
    token_ids: list[int] = []
    segments: list[Segment] = []
    keys: list[str] = []
    targets: list[tuple[Tensor, Tensor]] = [_NOTHING] * len(samples)
    # Equal lengths are neighbours, which attention takes together; samples alone come first.
    for numbers in sorted(members.values(), key=lambda numbers: (len(numbers) > 1, len(samples[numbers[0]].token_ids))):
        numbers.sort(key=lambda number: len(samples[number].token_ids))
        first = samples[numbers[0]]
        prompt, prompt_end, shared, shared_images = None, 0, 0, 0
        if len(numbers) > 1 and first.num_prompt_tokens:
            shared, shared_images = first.num_prompt_tokens, first.num_prompt_images
            prompt, prompt_end = len(segments), len(token_ids) + shared
            segments.append(Segment(shared))
            token_ids += first.token_ids[:shared]
            keys += first.image_keys[:shared_images]
        for number in numbers:
            sample = samples[number]
            offset = len(token_ids) - shared  # of the sample's tokens in the row
            places = torch.tensor(sample.loss_mask).nonzero()[:, 0]
            before = torch.where(places == shared, prompt_end - 1, offset + places - 1)
            targets[number] = offset + places, before if shared else offset + places - 1
            segments.append(Segment(len(sample.token_ids) - shared, prompt))
            token_ids += sample.token_ids[shared:]
            keys += sample.image_keys[shared_images:]
    if not samples:
        token_ids, segments = [0], [Segment(1)]
    places_of_keys: dict[str, int] = {}
    shown = tuple(places_of_keys.setdefault(key, len(places_of_keys)) for key in keys)
    logprobs, advantages = (_of_loss_tokens(samples, name) for name in ("logprobs", "advantages"))
    if not (logprobs.isfinite().all() and advantages.isfinite().all()):
        raise NonFiniteError("a log-probability or an advantage of the batch is not finite")
    positions, predictors = (torch.cat(parts) for parts in zip(_NOTHING, *targets, strict=True))
    return MicroBatch(
        token_ids=torch.tensor(token_ids),
        segments=tuple(segments),
        loss_positions=positions,
        predictors=predictors,
        sequences=torch.arange(len(samples)).repeat_interleave(
            torch.tensor([sample.num_loss_tokens for sample in samples], dtype=torch.int64)
        ),
        logprobs=logprobs,
        advantages=advantages,
        proximal_logprobs=_of_loss_tokens(samples, "proximal_logprobs")
        if any(sample.proximal_logprobs for sample in samples)
        else None,
        call_forbidden=_of_loss_tokens(samples, "call_forbidden").bool(),
        image_keys=tuple(places_of_keys),
        shown=shown,
    )


_NOTHING = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)


def _of_loss_tokens(samples: Sequence[TrainingSample], name: str) -> Tensor:
    """Return the samples' values of a field at their loss tokens, float32 [N]; 0 where a sample has none."""
    values: list[float] = []
    for sample in samples:
        found = getattr(sample, name)
        values += itertools.compress(found, sample.loss_mask) if found else (0.0,) * sample.num_loss_tokens
    return torch.tensor(values, dtype=torch.float32)
