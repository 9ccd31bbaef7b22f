"""Training samples -> micro-batches for each rank -> padded tensors, in which a prompt that several samples share stands once."""

import dataclasses
import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from arm_rl.core.errors import NonFiniteError
from arm_rl.core.types import Batch, TrainingSample

MicroSamples = tuple[TrainingSample, ...]


def make_batch(samples: Sequence[TrainingSample], *, num_ranks: int, micro_batch_tokens: int) -> Batch:
    """Cuts the samples of one optimizer step for the ranks.

    Samples that share a prompt stay together as far as the budget allows, and beside samples of like length: little is computed
    twice, little is padding. Every rank gets the same number of micro-batches, and the ranks' k-th ones cost about the same, since
    ranks wait for each other after each.

    Args:
        samples: at least one with loss tokens; those without any are left out.
        micro_batch_tokens: that a micro-batch costs at most (`cost`); a sample that costs more is alone in its micro-batch.

    Raises:
        ValueError: no sample has a token with loss, or a sample has loss on its first token, which nothing predicts.
    """
    kept = [sample for sample in samples if sample.num_loss_tokens]
    if not kept:
        raise ValueError(f"none of {len(samples)} samples has a token that carries loss")
    if any(sample.loss_mask[0] for sample in kept):
        raise ValueError("a sample has loss on its first token, which has no context")
    cut = [
        piece
        for number, bundle in enumerate(_bundle_by_prompt(kept))
        for piece in _cut_bundle(bundle, number, micro_batch_tokens)
    ]
    pieces = _balance_over_ranks(_merge_neighbours(cut, micro_batch_tokens), num_ranks)
    can_share = all(sample.num_prompt_tokens for sample in kept)
    ranks: list[list[MicroSamples]] = [[] for _ in range(num_ranks)]
    for turn, start in enumerate(range(0, len(pieces), num_ranks)):
        row = pieces[start : start + num_ranks]
        # back and forth: no rank gets all the costlier ones
        for rank, piece in enumerate(row if turn % 2 == 0 else reversed(row)):
            ranks[rank].append(tuple(piece.samples))
    return Batch(
        micro_batches=tuple(map(tuple, ranks)),
        num_loss_tokens=sum(sample.num_loss_tokens for sample in kept),
        num_samples=len(kept),
        share_prompts=can_share and any(len(piece.prompts) < len(piece.samples) for piece in pieces),
    )


def cost(samples: Sequence[TrainingSample]) -> int:
    """Tokens of one forward pass, padding counted; those of each distinct image once more, for the vision tower."""
    return _Piece(samples, [_prompt_key(sample) for sample in samples]).cost


class _Piece:
    """Samples of one forward pass, and what decides on its cost: it grows without counting again what is in it."""

    def __init__(self, samples: Sequence[TrainingSample], prompt_of: Sequence[Hashable]) -> None:
        """`prompt_of` says which prompt each sample has: equal where they share it."""
        self.samples, self.prompt_of = list(samples), list(prompt_of)
        self.prompts = set(prompt_of)
        self._images = {
            key: tokens
            for sample in samples
            for key, tokens in zip(sample.image_keys, sample.image_tokens, strict=False)
        }
        self._image_tokens = sum(self._images.values())
        self._can_share = all(sample.num_prompt_tokens for sample in samples)
        self._longest = max((len(sample.token_ids) for sample in samples), default=0)
        self._longest_prompt = max((sample.num_prompt_tokens for sample in samples), default=0)
        self._longest_branch = max((len(sample.token_ids) - sample.num_prompt_tokens for sample in samples), default=0)
        self.cost = 0
        self.cost = self.cost_with(self)

    def cost_with(self, other: "_Piece") -> int:
        """Of both in one forward pass. With itself: its own."""
        num_samples = len(self.samples) + (len(other.samples) if other is not self else 0)
        num_prompts = len(self.prompts) + sum(prompt not in self.prompts for prompt in other.prompts)
        image_tokens = self._image_tokens + sum(
            tokens for key, tokens in other._images.items() if key not in self._images
        )
        if self._can_share and other._can_share and num_prompts < num_samples:
            prompts = num_prompts * max(self._longest_prompt, other._longest_prompt)
            return prompts + num_samples * max(self._longest_branch, other._longest_branch) + image_tokens
        return num_samples * max(self._longest, other._longest) + image_tokens

    def merge(self, other: "_Piece") -> None:
        """Add the samples of another piece."""
        self.cost = self.cost_with(other)
        self.samples += other.samples
        self.prompt_of += other.prompt_of
        self.prompts |= other.prompts
        self._image_tokens += sum(tokens for key, tokens in other._images.items() if key not in self._images)
        self._images |= other._images
        self._can_share = self._can_share and other._can_share
        self._longest = max(self._longest, other._longest)
        self._longest_prompt = max(self._longest_prompt, other._longest_prompt)
        self._longest_branch = max(self._longest_branch, other._longest_branch)

    def split(self, number: int) -> "list[_Piece]":
        """Split into consecutive pieces whose sizes differ by one at most."""
        size, larger = divmod(len(self.samples), number)
        ends = [part * size + min(part, larger) for part in range(number + 1)]
        return [_Piece(self.samples[start:end], self.prompt_of[start:end]) for start, end in itertools.pairwise(ends)]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How samples become rows: where prompts stand apart, a sample's own row is what follows its prompt; else it is the whole."""

    prompts: tuple[tuple[int, ...], ...]  # ids of the distinct prompts
    prompt_images: tuple[tuple[str, ...], ...]  # keys of each prompt
    prompt_of: tuple[int, ...]  # of each sample: the place of its prompt
    branches: tuple[range, ...]  # of each sample: its own row, as places in it
    first_images: tuple[int, ...]  # of each sample: the first image of its own row

    @classmethod
    def of(cls, samples: Sequence[TrainingSample], shared: bool) -> "_Layout":
        if not shared:
            return cls((), (), (), tuple(range(len(sample.token_ids)) for sample in samples), (0,) * len(samples))
        prompts: dict[Hashable, TrainingSample] = {}
        for sample in samples:
            prompts.setdefault(_prompt_key(sample), sample)
        places = {key: place for place, key in enumerate(prompts)}
        return cls(
            prompts=tuple(first.token_ids[: first.num_prompt_tokens] for first in prompts.values()),
            prompt_images=tuple(first.image_keys[: first.num_prompt_images] for first in prompts.values()),
            prompt_of=tuple(places[_prompt_key(sample)] for sample in samples),
            branches=tuple(range(sample.num_prompt_tokens, len(sample.token_ids)) for sample in samples),
            first_images=tuple(sample.num_prompt_images for sample in samples),
        )


def _prompt_key(sample: TrainingSample) -> Hashable:
    """Return a key that is equal for samples that share a prompt."""
    if not sample.num_prompt_tokens:
        return id(sample)
    return sample.token_ids[: sample.num_prompt_tokens], sample.image_keys[: sample.num_prompt_images]


def _bundle_by_prompt(samples: Sequence[TrainingSample]) -> list[list[TrainingSample]]:
    """Collect the samples of each prompt; the longest ones come first."""
    bundles: dict[Hashable, list[TrainingSample]] = {}
    for sample in samples:
        bundles.setdefault(_prompt_key(sample), []).append(sample)
    for bundle in bundles.values():
        bundle.sort(key=lambda sample: (len(sample.token_ids), sample.image_keys), reverse=True)
    return sorted(bundles.values(), key=_sort_key, reverse=True)


def _cut_bundle(bundle: Sequence[TrainingSample], prompt: int, budget: int) -> list[_Piece]:
    """Cut one bundle into pieces within the budget, as even as possible."""
    whole = _Piece(bundle, [prompt] * len(bundle))
    # fewer pieces cannot hold them
    least = sum(len(sample.token_ids) - sample.num_prompt_tokens for sample in bundle) // budget
    for num_pieces in range(max(least, 1), len(bundle)):
        pieces = whole.split(num_pieces)
        if all(piece.cost <= budget for piece in pieces):
            return pieces
    return whole.split(len(bundle))


def _merge_neighbours(pieces: Sequence[_Piece], budget: int) -> list[_Piece]:
    """Merge neighbouring pieces as long as they fit into the budget."""
    filled: list[_Piece] = []
    for piece in sorted(pieces, key=lambda piece: _sort_key(piece.samples), reverse=True):
        if filled and filled[-1].cost_with(piece) <= budget:
            filled[-1].merge(piece)
        else:
            filled.append(piece)
    return filled


def _balance_over_ranks(pieces: Sequence[_Piece], num_ranks: int) -> list[_Piece]:
    """Split the costliest pieces until the ranks have equally many; add empty ones only if nothing can be split."""
    even = list(pieces)
    while len(even) % num_ranks:
        costliest = max((piece for piece in even if len(piece.samples) > 1), key=lambda piece: piece.cost, default=None)
        if costliest is None:
            even.append(_Piece((), ()))
            continue
        even.remove(costliest)
        even += costliest.split(2)
    return sorted(even, key=lambda piece: piece.cost, reverse=True)


def _sort_key(samples: Sequence[TrainingSample]) -> tuple[int, int, tuple[str, ...]]:
    """Return the lengths of the longest branch and its prompt, which decide on padding, and its images."""
    longest = max(samples, key=lambda sample: len(sample.token_ids) - sample.num_prompt_tokens)
    return len(longest.token_ids) - longest.num_prompt_tokens, longest.num_prompt_tokens, longest.image_keys


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """A micro-batch as tensors: B samples, padded on the right to T tokens, of which G prompts of P tokens stand apart.

    Where prompts are shared, a sample's row is what follows its prompt, `prompt_of` says which that is, and attention reaches back
    into it; else G is 0 and the rows are whole.
    """

    token_ids: Tensor  # int64 [B, T], 0 where padded
    attention_mask: Tensor  # bool [B, T], False where padded
    loss_mask: Tensor  # bool [B, T]
    logprobs: Tensor  # float32 [B, T], of the behaviour policy; 0 without loss
    advantages: Tensor  # float32 [B, T], 0 without loss
    proximal_logprobs: Tensor | None  # float32 [B, T], where the samples have them
    call_forbidden: Tensor  # bool [B, T]
    prompt_ids: Tensor  # int64 [G, P], 0 where padded
    prompt_mask: Tensor  # bool [G, P], False where padded
    prompt_of: Tensor  # int64 [B], or [0] where G is 0
    image_keys: tuple[str, ...] = ()  # the distinct images
    # for each run of image pads of the prompts, in order: the place of its image in image_keys
    prompt_shown: tuple[int, ...] = ()
    shown: tuple[int, ...] = ()  # the same for the rows

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        moved = {
            name: value.to(device, non_blocking=True) for name, value in values.items() if isinstance(value, Tensor)
        }
        return dataclasses.replace(self, **moved)


def collate(samples: Sequence[TrainingSample], *, share_prompts: bool = False) -> MicroBatch:
    """Pads samples to one length. Of no samples it makes one row of one token without loss, so that every rank has work to do.

    Args:
        share_prompts: as the batch says, for all of its micro-batches alike: the ranks' forward passes must run the same modules.

    Raises:
        NonFiniteError: a log-probability or an advantage is not finite.
    """
    layout = _Layout.of(samples, share_prompts)
    shape = (max(len(samples), 1), max(map(len, layout.branches), default=1))
    token_ids = torch.zeros(shape, dtype=torch.int64)  # [B, T]
    attention_mask = torch.zeros(shape, dtype=torch.bool)  # [B, T]
    loss_mask, call_forbidden = torch.zeros_like(attention_mask), torch.zeros_like(attention_mask)  # [B, T] each
    logprobs, advantages, proximal = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)  # [B, T] each
    for row, (sample, own) in enumerate(zip(samples, layout.branches, strict=True)):
        length, part = len(own), slice(own.start, None)
        token_ids[row, :length] = torch.tensor(sample.token_ids[part])
        attention_mask[row, :length] = True
        loss_mask[row, :length] = torch.tensor(sample.loss_mask[part])
        logprobs[row, :length] = torch.tensor(sample.logprobs[part])
        advantages[row, :length] = torch.tensor(sample.advantages[part])
        if sample.call_forbidden:
            call_forbidden[row, :length] = torch.tensor(sample.call_forbidden[part])
        if sample.proximal_logprobs:
            proximal[row, :length] = torch.tensor(sample.proximal_logprobs[part])
    if not samples:
        attention_mask[0, 0] = True
    if not (logprobs.isfinite().all() and advantages.isfinite().all()):
        raise NonFiniteError("a log-probability or an advantage of the batch is not finite")
    prompts = layout.prompts if samples or not share_prompts else ((0,),)
    prompt_ids = torch.zeros((len(prompts), max(map(len, prompts), default=0)), dtype=torch.int64)  # [G, P]
    for row, ids in enumerate(prompts):
        prompt_ids[row, : len(ids)] = torch.tensor(ids)
    lengths = torch.tensor([len(ids) for ids in prompts], dtype=torch.int64)  # [G]
    places: dict[str, int] = {}
    return MicroBatch(
        token_ids=token_ids,
        attention_mask=attention_mask,
        loss_mask=loss_mask,
        logprobs=logprobs,
        advantages=advantages,
        proximal_logprobs=proximal if any(sample.proximal_logprobs for sample in samples) else None,
        call_forbidden=call_forbidden,
        prompt_ids=prompt_ids,
        prompt_mask=torch.arange(prompt_ids.shape[1]) < lengths[:, None],
        prompt_of=torch.tensor(layout.prompt_of if samples or not share_prompts else (0,), dtype=torch.int64),
        prompt_shown=tuple(places.setdefault(key, len(places)) for keys in layout.prompt_images for key in keys),
        shown=tuple(
            places.setdefault(key, len(places))
            for sample, first in zip(samples, layout.first_images, strict=True)
            for key in sample.image_keys[first:]
        ),
        image_keys=tuple(places),
    )
