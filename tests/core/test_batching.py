"""Filling packed rows for the ranks, and the checks of a training sample."""

import collections
import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arm_rl.core import batching
from arm_rl.core.batching import cost, make_batch
from arm_rl.core.loss import token_weights
from arm_rl.core.micro_batch import collate
from arm_rl.core.types import Batch, TrainingSample
from tests.support.shared_prompts import group, sample


def random_samples(number: int, seed: int = 0) -> list[TrainingSample]:
    source = random.Random(seed)
    return [sample(source.randrange(4, 60), source.randrange(1, 4), seed=index) for index in range(number)]


def rows_of(batch: Batch) -> list[tuple[TrainingSample, ...]]:
    return [row for rank in batch.micro_batches for row in rank]


def contents(batch: Batch) -> list[TrainingSample]:
    return [item for row in rows_of(batch) for item in row]


def prompts_of(batch: Batch) -> list[int]:
    """How many prompts each row with samples has."""
    return [len({item.prompt_key for item in row}) for row in rows_of(batch) if row]


@given(
    branches=st.lists(st.lists(st.integers(2, 40), min_size=1, max_size=12), min_size=1, max_size=12),
    prompt=st.integers(1, 60),
    num_alone=st.integers(0, 6),
    num_ranks=st.integers(1, 4),
    budget=st.integers(1, 600),
)
def test_each_sample_is_in_one_row_within_the_budget_and_ranks_have_as_many(
    branches, prompt, num_alone, num_ranks, budget
):
    groups = [group(prompt, lengths, images=(f"i{seed % 3}",), seed=seed) for seed, lengths in enumerate(branches)]
    samples = [one for members in groups for one in members] + random_samples(num_alone)
    batch = make_batch(samples, num_ranks=num_ranks, micro_batch_tokens=budget)
    assert collections.Counter(map(id, contents(batch))) == collections.Counter(map(id, samples))
    assert len(batch.micro_batches) == num_ranks
    assert len({len(rank) for rank in batch.micro_batches}) == 1
    assert all(cost(row) <= budget or len(row) == 1 for row in rows_of(batch))
    assert batch.num_samples == len(samples)
    assert batch.num_loss_tokens == sum(item.num_loss_tokens for item in samples)
    assert batch.num_repeated_prompts == sum(prompts_of(batch)) - len(groups) - num_alone


def test_ranks_are_balanced():
    batch = make_batch(random_samples(96), num_ranks=2, micro_batch_tokens=240)
    costs = [sum(map(cost, rank)) for rank in batch.micro_batches]
    assert max(costs) < 1.02 * min(costs)
    for first, second in zip(*batch.micro_batches, strict=True):  # done at the same time
        assert abs(cost(first) - cost(second)) <= 10


def test_the_budget_is_used():
    batch = make_batch(random_samples(200), num_ranks=1, micro_batch_tokens=1000)
    filled = [cost(row) for row in rows_of(batch)]
    assert sum(filled) == sum(len(item.token_ids) for item in contents(batch)), "no padding"
    assert sum(filled) > 0.85 * 1000 * len(filled)


def test_a_shared_prompt_is_paid_for_once():
    samples = group(100, [10, 20, 30])
    assert cost(samples) == 100 + 60
    assert cost(samples[:1]) == 110
    assert cost([dataclasses.replace(item, num_prompt_tokens=0) for item in samples]) == 3 * 100 + 60
    assert cost([*samples, *group(50, [10], seed=1)]) == 160 + 60


def test_images_are_paid_for_once_more():
    samples = group(100, [10] * 8, images=("a", "b"))
    assert cost(samples) == 100 + 8 * 10 + 2 * 10
    assert cost([*samples, *group(100, [10] * 2, images=("b", "c"), seed=1)]) == 2 * 100 + 10 * 10 + 3 * 10


def test_groups_stay_together_and_fill_rows():
    groups = [group(100, [20 + number] * 8, seed=number) for number in range(6)]
    samples = [item for members in groups for item in members]
    random.Random(0).shuffle(samples)
    batch = make_batch(samples, num_ranks=2, micro_batch_tokens=600)
    assert sorted(prompts_of(batch)) == [1, 1, 2, 2]
    assert batch.num_repeated_prompts == 0
    large = make_batch(samples, num_ranks=1, micro_batch_tokens=100_000)
    assert [len(row) for row in rows_of(large)] == [48]


def test_a_group_larger_than_a_row_is_cut_evenly_and_its_prompt_repeated_and_counted():
    batch = make_batch(group(100, list(range(10, 26))), num_ranks=1, micro_batch_tokens=100 + 100)
    costs = [cost(row) for row in rows_of(batch)]
    assert len(costs) == 3, "280 branch tokens in rows with room for 100"
    assert max(costs) - min(costs) <= 16
    assert batch.num_repeated_prompts == 2
    alone = make_batch(group(100, [10] * 4), num_ranks=1, micro_batch_tokens=50)
    assert [len(row) for row in rows_of(alone)] == [1] * 4
    assert alone.num_repeated_prompts == 3


def test_a_group_is_cut_where_a_rank_would_have_nothing_to_do():
    batch = make_batch(group(10, [20] * 8), num_ranks=2, micro_batch_tokens=1000)
    assert [len(row) for row in rows_of(batch)] == [4, 4]
    assert batch.num_repeated_prompts == 1
    few = make_batch(group(10, [20] * 2), num_ranks=3, micro_batch_tokens=1000)
    assert sorted(len(row) for row in rows_of(few)) == [0, 1, 1]


def test_samples_that_share_an_image_stay_together():
    samples = [
        dataclasses.replace(sample(20, images=(f"image {index % 4}",), seed=index), image_tokens=(5,))
        for index in range(16)
    ]
    batch = make_batch(samples, num_ranks=2, micro_batch_tokens=4 * 20 + 9)
    assert [len({item.image_keys for item in row}) for row in rows_of(batch)] == [1] * 4


@pytest.mark.parametrize("budget", [40, 400, 1_000_000])
def test_work_grows_with_the_samples_and_no_faster(monkeypatch, budget):
    """Thousands of trajectories a step: whatever the budget, a sample is counted a few times."""
    looked_at = 0

    class Counting(batching._Piece):
        def __init__(self, parts=()):
            nonlocal looked_at
            looked_at += sum(len(members) for _, members in parts)
            super().__init__(parts)

        def cost_with(self, other):
            nonlocal looked_at
            looked_at += len(other.images)
            return super().cost_with(other)

    monkeypatch.setattr(batching, "_Piece", Counting)
    samples = [
        one for number in range(100) for one in group(10, [5, 9, 7, 6], images=(f"image {number}",), seed=number)
    ]
    make_batch(samples, num_ranks=3, micro_batch_tokens=budget)
    assert looked_at < 8 * len(samples)


def test_samples_without_loss_are_left_out():
    samples = [*random_samples(3), sample(9, num_loss=0)]
    batch = make_batch(samples, num_ranks=1, micro_batch_tokens=1000)
    assert batch.num_samples == 3
    assert samples[3] not in contents(batch)
    with pytest.raises(ValueError, match="none of 1 samples"):
        make_batch(samples[3:], num_ranks=1, micro_batch_tokens=1000)


def test_loss_on_the_first_token_is_refused():
    with pytest.raises(ValueError, match="first token"):
        make_batch([sample(3, num_loss=3)], num_ranks=1, micro_batch_tokens=10)
    with pytest.raises(ValueError, match="a prompt carries loss"):
        dataclasses.replace(sample(3, num_loss=2), num_prompt_tokens=2)


def test_weights_do_not_depend_on_the_cut():
    samples = [*random_samples(11), *group(30, [5, 9, 12])]
    totals = []
    for num_ranks, budget in [(1, 10_000), (2, 150), (3, 1)]:
        batch = make_batch(samples, num_ranks=num_ranks, micro_batch_tokens=budget)
        of_sample = collections.Counter()
        for row in rows_of(batch):
            sequences = collate(row).sequences
            weights = token_weights(
                sequences,
                "sequence_mean",
                num_loss_tokens=batch.num_loss_tokens,
                num_samples=batch.num_samples,
            )
            for number, weight in zip(sequences.tolist(), weights.tolist(), strict=True):
                of_sample[id(row[number])] += weight
        totals.append([of_sample[id(item)] for item in samples])
    for total in totals:
        assert total == pytest.approx([1 / 14] * 14)


@pytest.mark.parametrize("name", ["loss_mask", "logprobs", "advantages", "call_forbidden", "proximal_logprobs"])
def test_a_training_sample_has_one_length(name):
    whole = dataclasses.replace(sample(4), call_forbidden=(False,) * 4, proximal_logprobs=(0.0,) * 4)
    with pytest.raises(ValueError, match=f"{name} has 3 entries for 4 token_ids"):
        dataclasses.replace(whole, **{name: getattr(whole, name)[:3]})
