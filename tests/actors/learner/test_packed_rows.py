"""Packed rows compute what the plain model computes for each trajectory alone, whatever the groups and however they are packed."""

# ruff: noqa: F811 (fixtures of another file)

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.learner.image_inputs import ImagePreparer
from actors.learner.packed_attention import attend, use_packed_attention
from actors.learner.policy_model import PolicyModel
from arm_rl.core.batching import make_batch
from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.images import Image
from arm_rl.core.micro_batch import Segment, collate
from tests.actors.learner.test_policy_model import (
    folder,  # noqa: F401
    gradients_of_plain,
    ids,  # noqa: F401
    images,  # noqa: F401
    load,
    plain,  # noqa: F401
    preparer,  # noqa: F401
    score_plainly,
)
from tests.support import random_samples
from tests.support.random_samples import Ids

SHOWN = st.lists(st.integers(0, 3), max_size=2)  # numbers of images
BRANCHES = st.lists(st.tuples(st.integers(2, 12), SHOWN), min_size=1, max_size=6)  # tokens beside the images, images
GROUPS = st.lists(st.tuples(st.integers(5, 30), SHOWN, BRANCHES), min_size=1, max_size=4)
SIXTY_FOUR = [(12, [0, 1], [(3 + number % 9, [2] * (number % 8 == 0)) for number in range(64)])]


@dataclass(frozen=True, repr=False)
class Models:
    """The policy and the plain model with the same weights, and what both read."""

    policy: PolicyModel
    plain: Any
    preparer: ImagePreparer
    ids: Ids
    images: dict[str, Image]


@pytest.fixture(scope="module", params=[False, True], ids=["kept", "checkpointed"])
def models(request, folder, ids, plain, preparer, images):
    config = LearnerConfig(freeze_vision=False, freeze_projector=False, gradient_checkpointing=request.param)
    return Models(load(folder, ids, config), plain, preparer, ids, images)


@settings(max_examples=8, deadline=None)
@given(groups=GROUPS, num_ranks=st.integers(1, 3), budget=st.integers(1, 500))
@example(groups=SIXTY_FOUR, num_ranks=1, budget=100_000)
@example(groups=[(12, [0, 1], [(3 + number, []) for number in range(16)])], num_ranks=2, budget=150)
def test_every_packing_is_the_plain_model(models, groups, num_ranks, budget):
    """Log-probabilities within 1e-6 and gradients within 1e-5 of the plain forward pass of each trajectory, in float32."""
    policy, shown = models.policy, list(models.images.values())
    samples = [
        sample
        for seed, (prompt_length, of_prompt, branches) in enumerate(groups)
        for sample in random_samples.group(
            models.ids,
            [shown[number] for number in of_prompt],
            [[shown[number] for number in numbers] for _, numbers in branches],
            seed=seed,
            prompt_length=prompt_length,
            lengths=[length for length, _ in branches],
        )
    ]
    batch = make_batch(samples, num_ranks=num_ranks, micro_batch_tokens=budget)
    rows = [row for rank in batch.micro_batches for row in rank]
    packed = [sample for row in rows for sample in row]
    plainly = models.plain, models.preparer, models.ids, packed, models.images
    with torch.no_grad():
        expected, _ = score_plainly(*plainly)
    policy.zero_grad()
    found = []
    for row in rows:
        micro_batch = collate(row)
        logprobs, _ = policy(micro_batch, models.preparer.prepare(micro_batch.image_keys, models.images))
        (logprobs * micro_batch.advantages).sum().div(batch.num_loss_tokens).backward()
        found.append(logprobs.detach())
    torch.testing.assert_close(torch.cat(found), expected, atol=1e-6, rtol=1e-6)
    weights = dict(policy.named_parameters())
    for name, gradient in gradients_of_plain(*plainly).items():
        of_plain = torch.zeros_like(weights[name]) if gradient is None else gradient / batch.num_loss_tokens
        torch.testing.assert_close(weights[name].grad, of_plain, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)], ids=str)
def test_attention_is_that_of_each_trajectory_alone(heads):
    """Grouped heads too: each branch is compared with causal attention over (prompt, branch)."""
    segments = [Segment(5), Segment(3, 0), Segment(3, 0), Segment(1, 0), Segment(4), Segment(4), Segment(6, 5)]
    alone = [(0,), (0, 1), (0, 2), (0, 3), (4,), (5,), (5, 6)]  # segments that each one sees
    starts = torch.tensor([0, *(segment.length for segment in segments)]).cumsum(0).tolist()
    length = starts[-1]
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, number, length, 8, dtype=torch.float64) for number in (heads[0], *heads[1:] * 2)
    )
    found, _ = attend(torch.nn.Module(), query, key, value, None, segments=segments, scaling=0.3, sliding_window=None)
    for number, seen in enumerate(alone):
        places = [place for one in seen for place in range(starts[one], starts[one + 1])]
        q, k, v = (
            tensor[:, :, places].repeat_interleave(heads[0] // tensor.shape[1], dim=1) for tensor in (query, key, value)
        )
        products = 0.3 * q @ k.transpose(2, 3)
        mask = torch.ones(len(places), len(places), dtype=torch.bool).tril()
        expected = products.masked_fill(~mask, -torch.inf).softmax(-1) @ v
        own = segments[number].length
        torch.testing.assert_close(
            found[:, starts[number] : starts[number + 1]], expected[:, :, -own:].transpose(1, 2), atol=1e-12, rtol=0
        )


def test_sliding_windows_are_refused():
    model = SimpleNamespace(config=SimpleNamespace(layer_types=["full_attention", "sliding_attention"]))
    with pytest.raises(ValueError, match="sliding-window"):
        use_packed_attention(model)
