"""Packing samples into one row of tensors."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arm_rl.core.micro_batch import Segment, collate
from tests.support.shared_prompts import group, sample


def test_a_shared_prompt_is_stored_once_before_its_branches():
    first, second, alone = group(4, [2, 3], images=("a",), seed=1), group(2, [3], images=("a", "b"), seed=2), sample(3)
    second = [dataclasses.replace(second[0], image_keys=("a", "b", "c"))]  # one more in its own branch
    row = collate([*first, second[0], alone])
    assert row.token_ids.tolist() == [
        *alone.token_ids,
        *second[0].token_ids,
        *first[0].token_ids,
        *first[1].token_ids[4:],
    ]
    assert row.segments == (Segment(3), Segment(5), Segment(4), Segment(2, 2), Segment(3, 2))
    assert row.loss_positions.tolist() == [13, 15, 16, 6, 7, 2]
    assert row.predictors.tolist() == [12, 14, 15, 5, 6, 1]
    assert row.sequences.tolist() == [0, 1, 1, 2, 2, 3]
    assert (row.image_keys, row.shown) == (("a", "b", "c"), (0, 1, 2, 0))


def test_the_first_token_of_a_branch_is_predicted_by_the_end_of_its_prompt():
    row = collate(group(4, [2, 3], num_first=0))
    assert row.loss_positions.tolist() == [4, 5, 6, 7, 8]
    assert row.predictors.tolist() == [3, 4, 3, 6, 7]


def test_equal_lengths_are_neighbours_and_loss_tokens_in_the_order_of_the_samples():
    first, second = group(4, [3, 2, 3], seed=1), group(5, [4, 2], seed=2)
    mixed = [first[1], second[0], first[0], sample(9), second[1], first[2], sample(4), sample(9, seed=1)]
    row = collate(mixed)
    assert [segment.length for segment in row.segments] == [4, 9, 9, 4, 2, 3, 3, 5, 2, 4]
    assert [segment.prompt for segment in row.segments] == [None] * 4 + [3, 3, 3, None, 7, 7]
    assert row.sequences.tolist() == [0, 1, 1, 1, 2, 2, 3, 4, 5, 5, 6, 7]
    expected = [token for one in mixed for token, on in zip(one.token_ids, one.loss_mask, strict=True) if on]
    assert row.token_ids[row.loss_positions].tolist() == expected


@given(
    branches=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_every_loss_token_has_its_values_and_its_context(branches, seed):
    """What a token sees, segment by segment, is what comes before it in its sample."""
    samples = [
        one for number, lengths in enumerate(branches) for one in group(3 + seed % 4, lengths, seed=number, num_first=0)
    ]
    row = collate(samples)
    starts = [sum(segment.length for segment in row.segments[:number]) for number in range(len(row.segments))]
    assert starts[-1] + row.segments[-1].length == len(row.token_ids)

    def seen_by(position: int) -> list[int]:
        number = max(place for place, start in enumerate(starts) if start <= position)
        before = row.segments[number].prompt
        own = row.token_ids[starts[number] : position + 1].tolist()
        return (
            own
            if before is None
            else row.token_ids[starts[before] : starts[before] + row.segments[before].length].tolist() + own
        )

    loss_tokens = [
        (number, place) for number, one in enumerate(samples) for place, on in enumerate(one.loss_mask) if on
    ]
    assert len(loss_tokens) == len(row.loss_positions)
    for index, (number, place) in enumerate(loss_tokens):
        one = samples[number]
        assert row.sequences[index] == number
        assert seen_by(row.loss_positions[index]) == list(one.token_ids[: place + 1])
        assert seen_by(row.predictors[index]) == list(one.token_ids[:place])
        assert row.logprobs[index] == torch.tensor(one.logprobs[place])
        assert row.advantages[index] == torch.tensor(one.advantages[place])


def test_values_of_loss_tokens():
    first, second = sample(5, 2, seed=1), dataclasses.replace(sample(3, 1, seed=2), call_forbidden=(False, False, True))
    row = collate([first, second])
    assert row.call_forbidden.tolist() == [False, False, True]
    torch.testing.assert_close(row.logprobs, torch.tensor([*first.logprobs[3:], second.logprobs[2]]))
    torch.testing.assert_close(row.advantages, torch.tensor([*first.advantages[3:], second.advantages[2]]))
    assert row.proximal_logprobs is None
    scored = [dataclasses.replace(item, proximal_logprobs=item.logprobs) for item in (first, second)]
    torch.testing.assert_close(collate(scored).proximal_logprobs, row.logprobs)


def test_each_image_is_named_once():
    row = collate([sample(4, images=("a", "b")), sample(4, images=("b",)), sample(4), sample(4, images=("c", "a"))])
    assert row.image_keys == ("a", "b", "c")
    assert row.shown == (0, 1, 1, 2, 0)


def test_no_samples_are_a_row_without_loss():
    row = collate([])
    assert (row.token_ids.tolist(), row.segments) == ([0], (Segment(1),))
    assert len(row.loss_positions) == len(row.predictors) == len(row.sequences) == len(row.logprobs) == 0


def test_numbers_that_are_not_finite_are_refused():
    broken = dataclasses.replace(sample(3), advantages=(0.0, 0.0, math.nan))
    with pytest.raises(ValueError, match="not finite"):
        collate([broken])
