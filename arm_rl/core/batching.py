"""Training samples -> packed rows for each rank: whole groups, so that a prompt is computed once, and rows that cost about the same."""

import heapq
import itertools
import math
from collections.abc import Hashable, Sequence

from arm_rl.core.types import Batch, TrainingSample

Part = tuple[int, Sequence[TrainingSample]]  # number of a prompt, and samples that share it


def make_batch(samples: Sequence[TrainingSample], *, num_ranks: int, micro_batch_tokens: int) -> Batch:
    """Distribute the samples of one optimizer step over the rows (micro-batches) of the ranks.

    Samples that share a prompt share a row; a group that is larger than a row is cut, and its prompt computed once a row. Every rank
    gets the same number of rows, and the ranks' k-th rows cost about the same, since ranks wait for each other after each.

    Args:
        samples: At least one with loss tokens; samples without any are dropped.
        num_ranks: Data-parallel ranks.
        micro_batch_tokens: Cost of a row at most (`cost`); a sample that costs more has a row of its own.

    Raises:
        ValueError: If no sample has a token with loss, or a sample has loss on its first token, which nothing predicts.
    """
    kept = [sample for sample in samples if sample.num_loss_tokens]
    if not kept:
        raise ValueError(f"none of {len(samples)} samples has a token that carries loss")
    if any(sample.loss_mask[0] for sample in kept):
        raise ValueError("a sample has loss on its first token, which has no context")
    groups: dict[Hashable, list[TrainingSample]] = {}
    for sample in kept:
        groups.setdefault(sample.prompt_key, []).append(sample)
    cut = [piece for part in enumerate(groups.values()) for piece in _cut(part, micro_batch_tokens)]
    rows = _fill_rows(_join_by_image(cut, micro_batch_tokens), num_ranks, micro_batch_tokens)
    ranks: list[list[tuple[TrainingSample, ...]]] = [[] for _ in range(num_ranks)]
    for turn, start in enumerate(range(0, len(rows), num_ranks)):
        together = rows[start : start + num_ranks]
        # back and forth: no rank gets all the costlier ones
        for rank, row in enumerate(together if turn % 2 == 0 else reversed(together)):
            ranks[rank].append(tuple(sample for _, members in row.parts for sample in members))
    return Batch(
        micro_batches=tuple(map(tuple, ranks)),
        num_loss_tokens=sum(sample.num_loss_tokens for sample in kept),
        num_samples=len(kept),
        num_repeated_prompts=sum(len({number for number, _ in row.parts}) for row in rows) - len(groups),
    )


def cost(samples: Sequence[TrainingSample]) -> int:
    """Return the tokens of a row, each prompt counted once; those of each distinct image once more, for the vision tower."""
    groups: dict[Hashable, list[TrainingSample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt_key, []).append(sample)
    return _Piece(list(enumerate(groups.values()))).cost


class _Piece:
    """Samples that stay in one row: a group, a part of a group, or groups that show the same images."""

    def __init__(self, parts: Sequence[Part] = ()) -> None:
        self.parts = list(parts)
        self.images = {
            key: tokens
            for _, members in parts
            for sample in members
            for key, tokens in zip(sample.image_keys, sample.image_tokens, strict=False)
        }
        branches = sum(len(one.token_ids) - one.num_prompt_tokens for _, members in parts for one in members)
        prompts = sum(members[0].num_prompt_tokens for _, members in parts)
        self.cost = prompts + branches + sum(self.images.values())

    def cost_with(self, other: "_Piece") -> int:
        """Return the cost of both in one row."""
        return self.cost + other.cost - sum(tokens for key, tokens in other.images.items() if key in self.images)

    def add(self, other: "_Piece") -> None:
        """Add the samples of another piece."""
        self.cost = self.cost_with(other)
        self.parts += other.parts
        self.images |= other.images

    def split(self) -> "list[_Piece]":
        """Return the piece in halves, or alone if it is one sample. Groups are separated before a group is cut."""
        if len(self.parts) > 1:
            return [_Piece(self.parts[::2]), _Piece(self.parts[1::2])]
        ((number, members),) = self.parts
        return [_Piece([(number, members[first::2])]) for first in range(min(2, len(members)))]


def _cut(part: Part, budget: int) -> list[_Piece]:
    """Cut a group into as few pieces as the budget allows; a sample that costs more is a piece of its own."""
    number, members = part
    pieces = [_Piece([part])]
    by_length = sorted(members, key=lambda sample: len(sample.token_ids), reverse=True)
    for count in range(2, len(members) + 1):
        if all(piece.cost <= budget for piece in pieces):
            break
        hands: list[list[TrainingSample]] = [
            [] for _ in range(count)
        ]  # dealt back and forth, so that they cost about the same
        for hand, sample in zip(itertools.cycle([*hands, *reversed(hands)]), by_length, strict=False):
            hand.append(sample)
        pieces = [_Piece([(number, hand)]) for hand in hands]
    return pieces


def _join_by_image(pieces: Sequence[_Piece], budget: int) -> list[_Piece]:
    """Join pieces that show the same images as far as the budget allows: an image is encoded once a row."""
    joined: list[_Piece] = []
    for piece in sorted(pieces, key=lambda piece: sorted(piece.images)):
        if joined and joined[-1].images.keys() & piece.images and joined[-1].cost_with(piece) <= budget:
            joined[-1].add(piece)
        else:
            joined.append(piece)
    return joined


def _fill_rows(pieces: Sequence[_Piece], num_ranks: int, budget: int) -> list[_Piece]:
    """Fill rows evenly, as few as the budget allows and equally many for each rank; return them, the costliest first.

    Each piece goes to the cheapest row so far, the costliest piece first (Graham 1969, longest processing time). Rows are empty
    only where no piece can be split.
    """
    number = math.ceil(sum(min(piece.cost, budget) for piece in pieces) / budget)
    while True:
        number = math.ceil(number / num_ranks) * num_ranks
        pieces = _split_costliest(pieces, number)
        rows, sizes = [_Piece() for _ in range(number)], [0] * number
        heap = [(0, row) for row in range(number)]
        for piece in sorted(pieces, key=lambda piece: piece.cost, reverse=True):
            _, row = heap[0]
            rows[row].add(piece)
            sizes[row] += 1
            heapq.heapreplace(heap, (rows[row].cost, row))
        if all(row.cost <= budget or size == 1 for row, size in zip(rows, sizes, strict=True)):
            return sorted(rows, key=lambda row: row.cost, reverse=True)
        number = min(number + max(num_ranks, number // 16), len(pieces))


def _split_costliest(pieces: Sequence[_Piece], number: int) -> list[_Piece]:
    """Split the costliest pieces until there are `number`, or nothing can be split."""
    order = itertools.count()  # of pieces that cost the same
    heap = [(-piece.cost, next(order), piece) for piece in pieces]
    heapq.heapify(heap)
    alone: list[_Piece] = []
    while heap and len(heap) + len(alone) < number:
        _, _, piece = heapq.heappop(heap)
        halves = piece.split()
        if len(halves) == 1:
            alone.append(piece)
            continue
        for half in halves:
            heapq.heappush(heap, (-half.cost, next(order), half))
    return alone + [piece for _, _, piece in heap]
