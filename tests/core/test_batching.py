"""Cutting samples into micro-batches, padding them, and the checks of a training sample."""

import collections
import dataclasses
import math
import random

import pytest
import torch

from arm_rl.core.batching import collate, make_batch
from arm_rl.core.loss import token_weights
from arm_rl.core.types import Batch, TrainingSample


def sample(length: int, num_loss: int = 1, images: tuple[str, ...] = (), seed: int = 0) -> TrainingSample:
    source = random.Random(seed)
    mask = [False] * (length - num_loss) + [True] * num_loss
    return TrainingSample(
        token_ids=tuple(source.randrange(1, 100) for _ in range(length)),
        loss_mask=tuple(mask),
        logprobs=tuple(-source.random() if on else 0.0 for on in mask),
        advantages=tuple(source.random() if on else 0.0 for on in mask),
        image_keys=images,
    )


def random_samples(number: int, seed: int = 0) -> list[TrainingSample]:
    source = random.Random(seed)
    return [sample(source.randrange(4, 60), source.randrange(1, 4), seed=index) for index in range(number)]


def contents(batch: Batch) -> list[TrainingSample]:
    return [item for rank in batch.micro_batches for micro_batch in rank for item in micro_batch]


@pytest.mark.parametrize(("number", "num_ranks", "size"), [(1, 1, 1), (7, 2, 2), (8, 2, 4), (3, 4, 2), (33, 3, 5), (64, 1, 64)])
def test_each_sample_is_in_one_micro_batch_and_ranks_have_as_many(number, num_ranks, size):
    samples = random_samples(number)
    batch = make_batch(samples, num_ranks=num_ranks, micro_batch_size=size)
    assert collections.Counter(map(id, contents(batch))) == collections.Counter(map(id, samples))
    assert len(batch.micro_batches) == num_ranks
    assert {len(rank) for rank in batch.micro_batches} == {math.ceil(number / (num_ranks * size))}
    sizes = [len(micro_batch) for rank in batch.micro_batches for micro_batch in rank]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert batch.num_samples == number
    assert batch.num_loss_tokens == sum(item.num_loss_tokens for item in samples)


def test_lengths_in_a_micro_batch_are_alike_and_ranks_are_balanced():
    batch = make_batch(random_samples(96), num_ranks=2, micro_batch_size=4)
    padded = [
        sum(len(micro_batch) * max(len(item.token_ids) for item in micro_batch) for micro_batch in rank) for rank in batch.micro_batches
    ]
    tokens = sum(len(item.token_ids) for item in contents(batch))
    assert sum(padded) < 1.1 * tokens
    assert max(padded) < 1.05 * min(padded)
    for first, second in zip(*batch.micro_batches, strict=True):  # done at the same time
        assert abs(len(first[0].token_ids) - len(second[0].token_ids)) <= 8


def test_samples_that_share_an_image_stay_together():
    samples = [sample(20, images=(f"image {index % 4}",), seed=index) for index in range(16)]
    batch = make_batch(samples, num_ranks=2, micro_batch_size=4)
    for rank in batch.micro_batches:
        for micro_batch in rank:
            assert len({item.image_keys for item in micro_batch}) == 1


def test_samples_without_loss_are_left_out():
    samples = [*random_samples(3), sample(9, num_loss=0)]
    batch = make_batch(samples, num_ranks=1, micro_batch_size=8, policy_versions=[4, 3, 4])
    assert batch.num_samples == 3
    assert samples[3] not in contents(batch)
    assert batch.policy_versions == (3, 4)
    with pytest.raises(ValueError, match="none of 1 samples"):
        make_batch(samples[3:], num_ranks=1, micro_batch_size=8)


def test_loss_on_the_first_token_is_refused():
    with pytest.raises(ValueError, match="first token"):
        make_batch([sample(3, num_loss=3)], num_ranks=1, micro_batch_size=1)


def test_weights_do_not_depend_on_the_cut():
    samples = random_samples(11)
    totals = []
    for num_ranks, size in [(1, 11), (2, 3), (3, 1)]:
        batch = make_batch(samples, num_ranks=num_ranks, micro_batch_size=size)
        of_sample = {}
        for rank in batch.micro_batches:
            for micro_batch in rank:
                weights = token_weights(
                    collate(micro_batch).loss_mask, "sequence_mean", num_loss_tokens=batch.num_loss_tokens, num_samples=batch.num_samples
                )
                of_sample |= {id(item): row.sum().item() for item, row in zip(micro_batch, weights, strict=False)}
        totals.append([of_sample[id(item)] for item in samples])
    for total in totals:
        assert total == pytest.approx([1 / 11] * 11)


def test_collate_pads_on_the_right():
    first, second = sample(5, 2, seed=1), dataclasses.replace(sample(3, 1, seed=2), call_forbidden=(False, False, True))
    batch = collate([first, second])
    assert batch.token_ids.tolist() == [list(first.token_ids), [*second.token_ids, 0, 0]]
    assert batch.attention_mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert batch.loss_mask.tolist() == [[False] * 3 + [True] * 2, [False, False, True, False, False]]
    torch.testing.assert_close(batch.logprobs[1], torch.tensor([0, 0, second.logprobs[2], 0, 0]))
    torch.testing.assert_close(batch.advantages[0], torch.tensor(first.advantages))
    assert batch.call_forbidden.tolist() == [[False] * 5, [False, False, True, False, False]]


def test_collate_names_each_image_once():
    batch = collate([sample(4, images=("a", "b")), sample(4, images=("b",)), sample(4), sample(4, images=("c", "a"))])
    assert batch.image_keys == ("a", "b", "c")
    assert batch.shown == (0, 1, 1, 2, 0)


def test_collate_of_nothing_is_a_row_without_loss():
    batch = collate([])
    assert batch.token_ids.shape == (1, 1)
    assert batch.attention_mask.all()
    assert not batch.loss_mask.any()


def test_numbers_that_are_not_finite_are_refused():
    broken = dataclasses.replace(sample(3), advantages=(0.0, 0.0, math.nan))
    with pytest.raises(ValueError, match="not finite"):
        collate([broken])


@pytest.mark.parametrize("name", ["loss_mask", "logprobs", "advantages", "call_forbidden"])
def test_a_training_sample_has_one_length(name):
    whole = dataclasses.replace(sample(4), call_forbidden=(False,) * 4)
    with pytest.raises(ValueError, match=f"{name} has 3 entries for 4 token_ids"):
        dataclasses.replace(whole, **{name: getattr(whole, name)[:3]})
