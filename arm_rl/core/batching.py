"""Training samples -> micro-batches for each rank -> padded tensors."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from arm_rl.core.types import Batch, TrainingSample


def make_batch(samples: Sequence[TrainingSample], *, num_ranks: int, micro_batch_size: int, policy_versions: Iterable[int] = ()) -> Batch:
    """Cuts the samples of one optimizer step for the ranks.

    Samples of like length, and of like images among those, share a micro-batch: little padding, few images encoded twice. The
    micro-batches are as even as can be, and the ranks' k-th ones are of like length, since ranks wait for each other after each.

    Args:
        samples: at least one with loss tokens; those without any are left out.
        micro_batch_size: samples in a micro-batch at most.

    Raises:
        ValueError: no sample has a token with loss, or a sample has loss on its first token, which nothing predicts.
    """
    kept = [sample for sample in samples if sample.num_loss_tokens]
    if not kept:
        raise ValueError(f"none of {len(samples)} samples has a token that carries loss")
    if any(sample.loss_mask[0] for sample in kept):
        raise ValueError("a sample has loss on its first token, which has no context")
    kept.sort(key=lambda sample: (len(sample.token_ids), sample.image_keys), reverse=True)
    num_micro_batches = math.ceil(len(kept) / (num_ranks * micro_batch_size))  # of each rank
    pieces = _even_pieces(kept, num_ranks * num_micro_batches)
    ranks: list[list[tuple[TrainingSample, ...]]] = [[] for _ in range(num_ranks)]
    for turn in range(num_micro_batches):
        row = pieces[turn * num_ranks : (turn + 1) * num_ranks]
        for rank, piece in enumerate(row if turn % 2 == 0 else reversed(row)):  # back and forth: no rank gets all the longer ones
            ranks[rank].append(piece)
    return Batch(
        micro_batches=tuple(map(tuple, ranks)),
        num_loss_tokens=sum(sample.num_loss_tokens for sample in kept),
        num_samples=len(kept),
        policy_versions=tuple(sorted(set(policy_versions))),
    )


def _even_pieces(samples: Sequence[TrainingSample], num_pieces: int) -> list[tuple[TrainingSample, ...]]:
    """Consecutive pieces whose sizes differ by one at most; the last ones are empty where there are not enough samples."""
    size, larger = divmod(len(samples), num_pieces)
    ends = [piece * size + min(piece, larger) for piece in range(num_pieces + 1)]
    return [tuple(samples[start:end]) for start, end in itertools.pairwise(ends)]


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """A micro-batch as tensors: B samples, padded on the right to T tokens."""

    token_ids: Tensor  # int64 [B, T], 0 where padded
    attention_mask: Tensor  # bool [B, T], False where padded
    loss_mask: Tensor  # bool [B, T]
    logprobs: Tensor  # float32 [B, T], of the behaviour policy; 0 without loss
    advantages: Tensor  # float32 [B, T], 0 without loss
    call_forbidden: Tensor  # bool [B, T]
    image_keys: tuple[str, ...] = ()  # the distinct images
    shown: tuple[int, ...] = ()  # for each run of image pads, sample by sample: the place of its image in image_keys

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        moved = {name: value.to(device, non_blocking=True) for name, value in values.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **moved)


def collate(samples: Sequence[TrainingSample]) -> MicroBatch:
    """Pads samples to one length. Of no samples it makes one row of one token without loss, so that every rank has work to do.

    Raises:
        ValueError: a log-probability or an advantage is not finite.
    """
    shape = (max(len(samples), 1), max((len(sample.token_ids) for sample in samples), default=1))
    token_ids = torch.zeros(shape, dtype=torch.int64)  # [B, T]
    attention_mask = torch.zeros(shape, dtype=torch.bool)  # [B, T]
    loss_mask, call_forbidden = torch.zeros_like(attention_mask), torch.zeros_like(attention_mask)  # [B, T] each
    logprobs, advantages = torch.zeros(shape), torch.zeros(shape)  # [B, T] each
    for row, sample in enumerate(samples):
        length = len(sample.token_ids)
        token_ids[row, :length] = torch.tensor(sample.token_ids)
        attention_mask[row, :length] = True
        loss_mask[row, :length] = torch.tensor(sample.loss_mask)
        logprobs[row, :length] = torch.tensor(sample.logprobs)
        advantages[row, :length] = torch.tensor(sample.advantages)
        if sample.call_forbidden:
            call_forbidden[row, :length] = torch.tensor(sample.call_forbidden)
    if not samples:
        attention_mask[0, 0] = True
    if not (logprobs.isfinite().all() and advantages.isfinite().all()):
        raise ValueError("a log-probability or an advantage of the batch is not finite")
    places: dict[str, int] = {}
    shown = tuple(places.setdefault(key, len(places)) for sample in samples for key in sample.image_keys)
    return MicroBatch(
        token_ids=token_ids,
        attention_mask=attention_mask,
        loss_mask=loss_mask,
        logprobs=logprobs,
        advantages=advantages,
        call_forbidden=call_forbidden,
        image_keys=tuple(places),
        shown=shown,
    )
