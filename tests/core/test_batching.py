"""Cutting samples into micro-batches, padding them, and the checks of a training sample."""

import collections
import dataclasses
import math
import random

import pytest
import torch

from arm_rl.core import batching
from arm_rl.core.batching import collate, cost, make_batch
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


def group(prompt: int, branches: list[int], images: tuple[str, ...] = (), seed: int = 0) -> list[TrainingSample]:
    """Samples that share a prompt of so many tokens, whose last one stands for each of the images."""
    source = random.Random(seed)
    shared = tuple(source.randrange(100, 200) for _ in range(prompt))
    made = []
    for number, length in enumerate(branches):
        own = sample(length, length - 1, seed=1000 * seed + number)
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


@pytest.mark.parametrize(
    ("number", "num_ranks", "budget"), [(1, 1, 1), (7, 2, 100), (8, 2, 300), (3, 4, 100), (33, 3, 200), (64, 1, 9999)]
)
def test_each_sample_is_in_one_micro_batch_and_ranks_have_as_many(number, num_ranks, budget):
    samples = random_samples(number)
    batch = make_batch(samples, num_ranks=num_ranks, micro_batch_tokens=budget)
    assert collections.Counter(map(id, contents(batch))) == collections.Counter(map(id, samples))
    assert len(batch.micro_batches) == num_ranks
    assert len({len(rank) for rank in batch.micro_batches}) == 1
    for rank in batch.micro_batches:
        for micro_batch in rank:
            assert cost(micro_batch) <= budget or len(micro_batch) == 1
    assert batch.num_samples == number
    assert batch.num_loss_tokens == sum(item.num_loss_tokens for item in samples)


def test_lengths_in_a_micro_batch_are_alike_and_ranks_are_balanced():
    batch = make_batch(random_samples(96), num_ranks=2, micro_batch_tokens=240)
    padded = [sum(map(cost, rank)) for rank in batch.micro_batches]
    tokens = sum(len(item.token_ids) for item in contents(batch))
    assert sum(padded) < 1.1 * tokens
    assert max(padded) < 1.05 * min(padded)
    for first, second in zip(*batch.micro_batches, strict=True):  # done at the same time
        assert abs(cost(first) - cost(second)) <= 60


def test_the_budget_is_used():
    batch = make_batch(random_samples(200), num_ranks=1, micro_batch_tokens=1000)
    filled = [cost(micro_batch) for micro_batch in batch.micro_batches[0]]
    assert sum(filled) > 0.85 * 1000 * len(filled)


def test_a_shared_prompt_is_paid_for_once():
    samples = group(100, [10] * 8)
    assert cost(samples) == 100 + 8 * 10
    assert cost(samples[:1]) == 110
    assert cost([dataclasses.replace(item, num_prompt_tokens=0) for item in samples]) == 8 * 110
    assert cost([*samples, *group(50, [10], seed=1)]) == 2 * 100 + 9 * 10, (
        "a prompt of its own is padded to the longest"
    )


def test_images_are_paid_for_once_more():
    samples = group(100, [10] * 8, images=("a", "b"))
    assert cost(samples) == 100 + 8 * 10 + 2 * 10
    assert cost([*samples, *group(100, [10] * 2, images=("b", "c"), seed=1)]) == 2 * 100 + 10 * 10 + 3 * 10


def test_groups_stay_together_as_far_as_the_budget_allows():
    groups = [group(100, [20 + number] * 8, seed=number) for number in range(6)]
    samples = [item for members in groups for item in members]
    random.Random(0).shuffle(samples)
    batch = make_batch(samples, num_ranks=2, micro_batch_tokens=400)
    for rank in batch.micro_batches:
        for micro_batch in rank:
            assert len({item.token_ids[:100] for item in micro_batch}) == 1
    small = make_batch(samples, num_ranks=1, micro_batch_tokens=100 + 4 * 25)
    assert sorted(len(micro_batch) for micro_batch in small.micro_batches[0]) == [4] * 12, (
        "halves of a group, prompts computed twice"
    )
    large = make_batch(samples, num_ranks=1, micro_batch_tokens=100_000)
    assert [len(micro_batch) for micro_batch in large.micro_batches[0]] == [48]


def test_samples_that_share_an_image_stay_together():
    samples = [
        dataclasses.replace(sample(20, images=(f"image {index % 4}",), seed=index), image_tokens=(5,))
        for index in range(16)
    ]
    batch = make_batch(samples, num_ranks=2, micro_batch_tokens=4 * 20 + 9)
    for rank in batch.micro_batches:
        for micro_batch in rank:
            assert len({item.image_keys for item in micro_batch}) == 1


@pytest.mark.parametrize("budget", [400, 1_000_000])
def test_work_grows_with_the_samples_and_no_faster(monkeypatch, budget):
    """Thousands of trajectories a step: whatever the budget, a sample is looked at a few times."""
    looked_at = 0

    class Counting(batching._Piece):
        def __init__(self, samples, prompt_of):
            nonlocal looked_at
            looked_at += len(samples)
            super().__init__(samples, prompt_of)

        def cost_with(self, other):
            nonlocal looked_at
            looked_at += len(other.prompts)
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
        of_sample = {}
        for rank in batch.micro_batches:
            for micro_batch in rank:
                weights = token_weights(
                    collate(micro_batch).loss_mask,
                    "sequence_mean",
                    num_loss_tokens=batch.num_loss_tokens,
                    num_samples=batch.num_samples,
                )
                of_sample |= {id(item): row.sum().item() for item, row in zip(micro_batch, weights, strict=False)}
        totals.append([of_sample[id(item)] for item in samples])
    for total in totals:
        assert total == pytest.approx([1 / 14] * 14)


def test_collate_lays_shared_prompts_apart():
    first, second = group(4, [3, 2], images=("a",), seed=1), group(2, [3], images=("a", "b"), seed=2)
    second = [dataclasses.replace(second[0], image_keys=("a", "b", "c"))]  # one more in its own row
    batch = collate([*first, *second], share_prompts=True)
    assert batch.prompt_ids.tolist() == [list(first[0].token_ids[:4]), [*second[0].token_ids[:2], 0, 0]]
    assert batch.prompt_mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.prompt_of.tolist() == [0, 0, 1]
    assert batch.token_ids.tolist() == [
        list(first[0].token_ids[4:]),
        [*first[1].token_ids[4:], 0],
        list(second[0].token_ids[2:]),
    ]
    assert batch.loss_mask.tolist() == [[False, True, True], [False, True, False], [False, True, True]]
    torch.testing.assert_close(batch.logprobs[1], torch.tensor([0, first[1].logprobs[5], 0]))
    assert batch.image_keys == ("a", "b", "c")
    assert (batch.prompt_shown, batch.shown) == ((0, 0, 1), (2,))


def test_prompts_stand_apart_everywhere_or_nowhere():
    """As the batch says: a rank whose samples share nothing runs the same modules as the others."""
    alone = [*group(4, [3], seed=1), *group(4, [2], seed=2)]
    whole = collate(alone)
    assert whole.prompt_ids.shape == (0, 0)
    assert whole.token_ids[0].tolist() == list(alone[0].token_ids)
    assert collate(alone, share_prompts=True).prompt_of.tolist() == [0, 1]
    nothing = collate([], share_prompts=True)
    assert (nothing.prompt_ids.shape, nothing.token_ids.shape, nothing.prompt_of.tolist()) == ((1, 1), (1, 1), [0])


def test_a_batch_knows_whether_prompts_are_shared():
    def shares(samples, budget=10_000):
        return make_batch(samples, num_ranks=1, micro_batch_tokens=budget).share_prompts

    assert shares(group(4, [3, 2]))
    assert not shares(group(4, [3, 2]), budget=1), "each alone in its micro-batch"
    assert not shares([*group(4, [3], seed=1), *group(4, [2], seed=2)])
    assert not shares([dataclasses.replace(item, num_prompt_tokens=0) for item in group(4, [3, 2])])


def test_proximal_logprobs_are_laid_as_the_others():
    samples = [dataclasses.replace(item, proximal_logprobs=item.logprobs) for item in group(4, [3, 2])]
    batch = collate(samples)
    torch.testing.assert_close(batch.proximal_logprobs, batch.logprobs)
    assert collate(group(4, [3, 2])).proximal_logprobs is None


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


@pytest.mark.parametrize("name", ["loss_mask", "logprobs", "advantages", "call_forbidden", "proximal_logprobs"])
def test_a_training_sample_has_one_length(name):
    whole = dataclasses.replace(sample(4), call_forbidden=(False,) * 4, proximal_logprobs=(0.0,) * 4)
    with pytest.raises(ValueError, match=f"{name} has 3 entries for 4 token_ids"):
        dataclasses.replace(whole, **{name: getattr(whole, name)[:3]})
