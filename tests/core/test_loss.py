"""Losses against numbers worked out by hand, and GRPO's gradient against a naive formula, token by token."""

import dataclasses
import math
import random

import pytest
import torch

from arm_rl.core.loss import (
    GrpoObjective,
    SftObjective,
    TokenScores,
    TokenTargets,
    clipped_surrogate,
    importance_weights,
    kl_estimate,
    log_ratios,
    loss,
    means,
    token_weights,
)
from arm_rl.core.stage_config import AlgorithmConfig

SEQUENCES = torch.tensor([0, 0, 0, 1])  # of four loss tokens
NOTHING = torch.zeros(0, dtype=torch.int64)


def test_token_mean_weighs_every_token_alike():
    weights = token_weights(SEQUENCES, "token_mean", num_loss_tokens=8, num_samples=3)
    assert weights.tolist() == [0.125] * 4


def test_sequence_mean_weighs_every_sequence_alike():
    weights = token_weights(SEQUENCES, "sequence_mean", num_loss_tokens=8, num_samples=4)
    torch.testing.assert_close(weights, torch.tensor([1 / 12, 1 / 12, 1 / 12, 0.25]))


def test_fixed_length_divides_by_one_length():
    weights = token_weights(SEQUENCES, "fixed_length", num_loss_tokens=8, num_samples=2, fixed_length=10)
    torch.testing.assert_close(weights, torch.full((4,), 1 / 20))


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_a_micro_batch_without_loss_tokens_has_a_loss_of_zero_and_gradients(ratio):
    logprobs = torch.zeros(0, requires_grad=True)
    weights = token_weights(NOTHING, "sequence_mean", num_loss_tokens=1, num_samples=1)
    targets = TokenTargets(
        sequences=NOTHING, weights=weights, behaviour_logprobs=torch.zeros(0), advantages=torch.zeros(0)
    )
    value, sums = loss(GrpoObjective(ratio=ratio), TokenScores(logprobs=logprobs, entropy=torch.zeros(0)), targets)
    value.backward()
    assert value == 0
    assert logprobs.grad is not None
    assert not any(sums.values())


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "is_clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.6, True),  # a good token that became likelier: at most 1.3
        (0.5, 2.0, -1.0, False),  # a good token that became rarer is pulled back
        (0.5, -1.0, 0.9, True),  # a bad token that became rarer: at most down to 0.9
        (1.5, -1.0, 1.5, False),  # a bad token that became likelier is pushed down
        (1.2, 2.0, -2.4, False),
    ],
)
def test_clipped_surrogate(ratio, advantage, expected, is_clipped):
    logprobs = torch.tensor([math.log(0.2) + math.log(ratio)], requires_grad=True)
    log_ratio = log_ratios(logprobs, torch.tensor([math.log(0.2)]), torch.tensor([0]), "token")
    value, ratios, clipped = clipped_surrogate(log_ratio, torch.tensor([advantage]), clip_low=0.1, clip_high=0.3)
    value.sum().backward()
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert ratios.item() == pytest.approx(ratio, rel=1e-5)
    assert clipped.item() is is_clipped
    assert logprobs.grad.item() == pytest.approx(0.0 if is_clipped else -ratio * advantage, rel=1e-5)


def test_a_huge_ratio_has_a_finite_gradient():
    logprobs = torch.tensor([0.0, 0.0], requires_grad=True)
    log_ratio = log_ratios(logprobs, torch.tensor([-500.0, -500.0]), torch.tensor([0, 0]), "token")
    value, _, _ = clipped_surrogate(log_ratio, torch.tensor([1.0, -1.0]), clip_low=0.2, clip_high=0.2)
    value.sum().backward()
    assert logprobs.grad.isfinite().all()


LN2 = math.log(2)


def test_a_sequences_ratio_is_the_geometric_mean_of_its_tokens():
    """Sequence 0 has ratios 2, 1, 4: their geometric mean is 2. Sequence 1 has one token."""
    logprobs = torch.tensor([LN2, 0.0, 2 * LN2, -LN2], requires_grad=True)
    log_ratio = log_ratios(logprobs, torch.zeros(4), SEQUENCES, "sequence")
    torch.testing.assert_close(log_ratio.exp(), torch.tensor([2.0, 2.0, 2.0, 0.5]))
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0])
    value, _, clipped = clipped_surrogate(log_ratio, advantages, clip_low=0.6, clip_high=1.5)
    (value * token_weights(SEQUENCES, "sequence_mean", num_loss_tokens=4, num_samples=2)).sum().backward()
    assert not clipped.any()
    # d(-s A)/dlogp_t = -s A / |y| for each token of the sequence; the mean over two sequences halves it.
    torch.testing.assert_close(logprobs.grad, torch.tensor([-1 / 3, -1 / 3, -1 / 3, 0.25]))


def test_a_sequence_is_clipped_as_a_whole():
    """Its first token alone would not be."""
    logprobs = torch.tensor([0.0, LN2, 2 * LN2], requires_grad=True)
    log_ratio = log_ratios(logprobs, torch.zeros(3), torch.tensor([1, 1, 1]), "sequence")
    value, _, clipped = clipped_surrogate(log_ratio, torch.ones(3), clip_low=0.2, clip_high=0.5)
    value.sum().backward()
    assert clipped.all()
    assert not logprobs.grad.any()


def test_importance_weights_are_capped():
    proximal = torch.tensor([0.0, LN2, 3 * LN2, -LN2], requires_grad=True)
    weights, capped = importance_weights(proximal, torch.zeros(4), cap=3.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, 2.0, 3.0, 0.5]))
    assert capped.tolist() == [False, False, True, False]
    assert not weights.requires_grad


def test_decoupled_ppo_by_hand():
    """Two tokens: (logp, proximal, behaviour) give ratio 1.5 and weight 2, and ratio 0.5 and weight 4, capped at 3."""
    proximal = torch.tensor([math.log(0.2), math.log(0.4)])
    logprobs = torch.tensor([math.log(0.3), math.log(0.2)], requires_grad=True)
    targets = TokenTargets(
        sequences=torch.tensor([0, 1]),
        weights=torch.tensor([0.5, 0.5]),
        behaviour_logprobs=torch.tensor([math.log(0.1), math.log(0.1)]),
        advantages=torch.tensor([1.0, -1.0]),
        proximal_logprobs=proximal,
    )
    objective = GrpoObjective(clip_low=0.2, clip_high=1.0, importance_cap=3.0)
    value, sums = loss(objective, TokenScores(logprobs=logprobs, entropy=torch.zeros(2)), targets)
    value.backward()
    assert value.item() == pytest.approx(0.5 * (2 * -1.5 + 3 * 0.8), rel=1e-5)  # the second is clipped at 0.8
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.5 * 2 * -1.5, 0.0]))
    metrics = means({name: float(total) for name, total in sums.items()}, 2)
    assert metrics["importance"] == pytest.approx(2.5)
    assert (metrics["importance_capped_share"], metrics["clip_share"], metrics["clip_high_share"]) == (0.5, 0.5, 0.0)
    assert metrics["kl_engine"] == pytest.approx((math.log(0.1 / 0.3) + math.log(0.1 / 0.2)) / 2), (
        "against the engine, as it was"
    )


def test_importance_weights_need_proximal_logprobs():
    logits, tokens, targets = random_case(0)
    with pytest.raises(ValueError, match="proximal"):
        loss(GrpoObjective(importance_cap=2.0), scores_of(logits, tokens), targets)


def test_kl_estimates():
    policy, reference = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
    difference = math.log(0.5)
    assert kl_estimate(policy, reference, "k1").item() == pytest.approx(-difference)
    assert kl_estimate(policy, reference, "k2").item() == pytest.approx(difference**2 / 2)
    assert kl_estimate(policy, reference, "k3").item() == pytest.approx(0.5 - 1 - difference)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_kl_estimates_have_the_divergence_as_their_mean(kind):
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = (policy * (policy / reference).log()).sum()
    torch.testing.assert_close((policy * kl_estimate(policy.log(), reference.log(), kind)).sum(), exact)


def random_case(seed: int) -> tuple[torch.Tensor, torch.Tensor, TokenTargets]:
    """Logits [4, 5], their tokens [4] and targets."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 5, generator=generator)
    tokens = torch.randint(0, 5, (4,), generator=generator)
    near = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    noise = torch.randn(2, 4, generator=generator) * 0.4
    targets = TokenTargets(
        sequences=SEQUENCES,
        weights=token_weights(SEQUENCES, "token_mean", num_loss_tokens=4, num_samples=2),
        behaviour_logprobs=near + noise[0],
        advantages=torch.randn(4, generator=generator),
        reference_logprobs=near + noise[1],
    )
    return logits.requires_grad_(), tokens, targets


def scores_of(logits: torch.Tensor, tokens: torch.Tensor) -> TokenScores:
    distribution = logits.log_softmax(-1)
    logprobs = distribution.gather(-1, tokens[:, None])[:, 0]
    return TokenScores(logprobs=logprobs, entropy=-(distribution.exp() * distribution).sum(-1))


OBJECTIVE = GrpoObjective(clip_low=0.1, clip_high=0.3, kl_coefficient=0.05, kl_kind="k3", entropy_coefficient=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_grpo_is_the_naive_formula_summed_over_tokens(seed):
    logits, tokens, targets = random_case(seed)
    value, _ = loss(OBJECTIVE, scores_of(logits, tokens), targets)
    (gradient,) = torch.autograd.grad(value, logits)

    terms = []
    for place in range(4):
        probabilities = torch.exp(logits[place]) / torch.exp(logits[place]).sum()
        probability = probabilities[tokens[place]]
        ratio = probability / math.exp(targets.behaviour_logprobs[place])
        advantage = targets.advantages[place].item()
        bounded = ratio if 0.9 <= ratio.item() <= 1.3 else torch.tensor(min(max(ratio.item(), 0.9), 1.3))
        surrogate = min(ratio * advantage, bounded * advantage, key=lambda term: term.item())
        change = math.exp(targets.reference_logprobs[place]) / probability
        kl = change - torch.log(change) - 1
        entropy = -sum(p * torch.log(p) for p in probabilities)
        terms.append(-surrogate + 0.05 * kl - 0.02 * entropy)
    naive = sum(terms) / 4
    (expected,) = torch.autograd.grad(naive, logits)
    torch.testing.assert_close(value, naive)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_sums_of_pieces_are_the_sums_of_the_whole(ratio):
    objective = dataclasses.replace(OBJECTIVE, ratio=ratio, importance_cap=1.1)
    logits, tokens, targets = random_case(11)
    targets = dataclasses.replace(targets, proximal_logprobs=targets.behaviour_logprobs + 0.2 * torch.randn(4))
    scores = scores_of(logits, tokens)
    whole, sums = loss(objective, scores, targets)
    parts = []
    for row in (slice(0, 3), slice(3, 4)):
        piece = TokenTargets(**{name: getattr(targets, name)[row] for name in TokenTargets.__dataclass_fields__})
        parts.append(loss(objective, TokenScores(logprobs=scores.logprobs[row], entropy=scores.entropy[row]), piece))
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole)
    for name, value in sums.items():
        torch.testing.assert_close(parts[0][1][name] + parts[1][1][name], value)


def test_metrics_are_means_over_loss_tokens():
    logits, tokens, targets = random_case(2)
    scores = scores_of(logits, tokens)
    value, sums = loss(OBJECTIVE, scores, targets)
    metrics = means({name: total.item() for name, total in sums.items()}, 4)
    ratio = torch.exp(scores.logprobs - targets.behaviour_logprobs)
    assert metrics["loss"] == pytest.approx(value.item())
    assert metrics["ratio"] == pytest.approx(ratio.mean().item(), rel=1e-5)
    assert metrics["entropy"] == pytest.approx(scores.entropy.mean().item(), rel=1e-5)
    assert metrics["kl_engine"] == pytest.approx(-ratio.log().mean().item(), rel=1e-4)
    advantages = targets.advantages
    clipped = ((ratio > 1.3) & (advantages > 0)) | ((ratio < 0.9) & (advantages < 0))
    assert metrics["clip_share"] == pytest.approx(clipped.float().mean().item())


def test_on_the_policy_that_sampled_there_is_no_clipping_and_no_gap():
    logits, tokens, targets = random_case(4)
    scores = scores_of(logits, tokens)
    own = TokenTargets(
        sequences=SEQUENCES,
        weights=targets.weights,
        behaviour_logprobs=scores.logprobs.detach(),
        advantages=targets.advantages,
    )
    value, sums = loss(GrpoObjective(), scores, own)
    assert (sums["ratio"].item(), sums["clip_share"].item(), sums["kl_engine"].item()) == (4.0, 0, 0.0)
    assert value.item() == pytest.approx(-targets.advantages.mean().item())


def test_sft_is_the_mean_negative_log_likelihood():
    logits, tokens, targets = random_case(3)
    value, sums = loss(SftObjective(), scores_of(logits, tokens), targets)
    expected = torch.nn.functional.cross_entropy(logits, tokens)
    torch.testing.assert_close(value, expected)
    assert set(sums) == {"loss", "entropy"}


def test_a_penalty_needs_a_reference():
    logits, tokens, targets = random_case(0)
    without = TokenTargets(
        sequences=SEQUENCES,
        weights=targets.weights,
        behaviour_logprobs=targets.behaviour_logprobs,
        advantages=targets.advantages,
    )
    with pytest.raises(ValueError, match="reference"):
        loss(OBJECTIVE, scores_of(logits, tokens), without)


def test_an_objective_of_a_configuration():
    source = random.Random(1)
    config = AlgorithmConfig(
        loss_aggregation="fixed_length",
        fixed_length=77,
        clip_low=0.15,
        clip_high=source.uniform(0.2, 0.4),
        kl_coefficient=0.1,
    )
    objective = GrpoObjective.of(config, temperature=0.8)
    assert (objective.aggregation, objective.fixed_length, objective.temperature) == ("fixed_length", 77, 0.8)
    assert (objective.clip_low, objective.clip_high, objective.kl_coefficient) == (0.15, config.clip_high, 0.1)
    assert (objective.ratio, objective.importance_cap) == ("token", None), (
        "no weights without proximal log-probabilities"
    )
    decoupled = GrpoObjective.of(
        AlgorithmConfig(ratio="sequence", proximal="recomputed", importance_cap=5.0), temperature=1.0
    )
    assert (decoupled.ratio, decoupled.importance_cap) == ("sequence", 5.0)
