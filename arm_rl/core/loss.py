"""Losses as pure functions of log-probabilities, masks and advantages.

Every loss is a sum over tokens, each with a weight that is known before the batch is cut (`token_weights`). Summed over the
micro-batches of all ranks it is the loss of the whole batch, so neither ranks nor micro-batches nor packing can change the gradient.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from arm_rl.core.stage_config import AlgorithmConfig

Aggregation = Literal["token_mean", "sequence_mean", "fixed_length"]
KlKind = Literal["k1", "k2", "k3"]
RatioLevel = Literal["token", "sequence"]

_MAX_LOG_RATIO = 20.0  # exp of more is no useful ratio, and its infinity times a zero gradient would be NaN


@dataclass(frozen=True, kw_only=True, slots=True)
class SftObjective:
    """SupervisedActor learning: the negative log-likelihood of the loss tokens."""

    aggregation: Aggregation = "token_mean"
    fixed_length: int = 1  # divisor of a sequence's loss under fixed_length
    temperature: float = 1.0  # the logits are divided by it


@dataclass(frozen=True, kw_only=True, slots=True)
class GrpoObjective:
    """Policy optimisation: the clipped surrogate, with an optional penalty towards a reference and an entropy bonus."""

    aggregation: Aggregation = "token_mean"
    fixed_length: int = 1  # divisor of a sequence's loss under fixed_length
    temperature: float = 1.0  # that the tokens were sampled at: the logits are divided by it
    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio: RatioLevel = "token"
    importance_cap: float | None = None  # of the weights that correct for the engine; needs proximal log-probabilities
    kl_coefficient: float = 0.0
    kl_kind: KlKind = "k3"
    entropy_coefficient: float = 0.0
    # of engine and learner: mean difference of the log-probabilities that a batch may have
    max_mismatch: float = math.inf

    @classmethod
    def of(cls, config: AlgorithmConfig, temperature: float) -> "GrpoObjective":
        """The objective of a configuration, for tokens sampled at `temperature`."""
        return cls(
            aggregation=config.loss_aggregation,
            fixed_length=config.fixed_length,
            temperature=temperature,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            ratio=config.ratio,
            importance_cap=config.importance_cap if config.proximal == "recomputed" else None,
            kl_coefficient=config.kl_coefficient,
            kl_kind=config.kl_kind,
            entropy_coefficient=config.entropy_coefficient,
            max_mismatch=config.max_mismatch,
        )


Objective = SftObjective | GrpoObjective


def token_weights(
    sequences: Tensor, aggregation: Aggregation, *, num_loss_tokens: int, num_samples: int, fixed_length: int = 1
) -> Tensor:
    """Return the weight of each token's loss; the counts are those of the complete batch, over all ranks and micro-batches.

    token_mean: 1 / num_loss_tokens, every token counts the same (DAPO, arXiv 2503.14476).
    sequence_mean: 1 / (num_samples * loss tokens of the sequence), every sequence counts the same (DeepSeekMath, equation 3).
    fixed_length: 1 / (num_samples * fixed_length), no bias by length (Dr. GRPO, arXiv 2503.20783).

    Args:
        sequences: int64 [N], index of each loss token's sequence.
        aggregation: How token losses are averaged.
        num_loss_tokens: Loss tokens of the batch.
        num_samples: Sequences of the batch.
        fixed_length: Divisor of a sequence's loss under fixed_length.

    Returns:
        float32 [N].
    """
    ones = torch.ones(sequences.shape, dtype=torch.float32, device=sequences.device)  # [N]
    if aggregation == "token_mean":
        return ones / num_loss_tokens
    if aggregation == "sequence_mean":
        return ones / (torch.bincount(sequences)[sequences] * num_samples)
    return ones / (num_samples * fixed_length)


def log_ratios(logprobs: Tensor, old_logprobs: Tensor, sequences: Tensor, level: RatioLevel) -> Tensor:
    """Return log(pi / pi_old), [N]: of each token (PPO), or of its sequence, as the mean over the sequence's loss tokens.

    The latter is GSPO, arXiv 2507.18071, equation 7: one ratio for all tokens of a sequence, which is clipped as one.
    """
    difference = logprobs - old_logprobs  # [N]
    if level == "sequence":
        counts = torch.bincount(sequences)  # [sequences]
        means = difference.new_zeros(len(counts)).index_add(0, sequences, difference) / counts.clamp(min=1)
        difference = means[sequences]
    return difference.clamp(max=_MAX_LOG_RATIO)


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) of each token: PPO, arXiv 1707.06347, equation 7.

    A `clip_high` above `clip_low` is DAPO's "clip-higher" (arXiv 2503.14476): rare good tokens may grow.

    Args:
        log_ratio: [N], of `log_ratios`; gradients flow through these alone.
        advantages: [N].

    Returns:
        The loss [N], the ratio [N] and, bool [N], where clipping took the gradient away.
    """
    ratio = log_ratio.exp()
    free = ratio * advantages
    limited = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return -torch.minimum(free, limited), ratio, limited < free


def importance_weights(proximal_logprobs: Tensor, behaviour_logprobs: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """min(pi_proximal / pi_behaviour, cap) of each token: what sampled differs from what the step starts from, by age or by numerics.

    Truncated importance sampling; with the ratio taken against the proximal policy this is decoupled PPO (arXiv 2110.00641, equation 4).

    Returns:
        The weights [N] without gradients, and bool [N], where the cap took hold.
    """
    weights = (proximal_logprobs - behaviour_logprobs).clamp(max=_MAX_LOG_RATIO).exp().detach()
    return weights.clamp(max=cap), weights > cap


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, kind: KlKind) -> Tensor:
    """An estimate of KL(policy || reference) for each sampled token, [N].

    With d = reference - policy: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - 1 - d (J. Schulman, "Approximating KL divergence", 2020). As
    a loss, k1 has a gradient of mean 0: it measures and does not pull.
    """
    difference = (reference_logprobs - logprobs).clamp(max=_MAX_LOG_RATIO)
    if kind == "k1":
        return -difference
    if kind == "k2":
        return 0.5 * difference.square()
    return torch.expm1(difference) - difference


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenScores:
    """A policy's scores of the N loss tokens of a micro-batch."""

    logprobs: Tensor  # float32 [N]
    entropy: Tensor  # float32 [N], nats


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTargets:
    """The inputs of a loss other than the policy's scores, for the N loss tokens of a micro-batch."""

    sequences: Tensor  # int64 [N], index of each token's sequence in the micro-batch
    weights: Tensor  # float32 [N], of `token_weights`
    behaviour_logprobs: Tensor  # float32 [N], of the engine that sampled
    advantages: Tensor  # float32 [N]
    # float32 [N], of the weights that the step started from; None: behaviour_logprobs
    proximal_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None  # float32 [N], where there is a penalty towards a reference


def loss(objective: Objective, scores: TokenScores, targets: TokenTargets) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a micro-batch, and sums of its metrics.

    Returns:
        A scalar; the scalars of all micro-batches add up to the batch's loss. And sums without gradients that add up likewise;
        `means` makes metrics of them.
    """
    if isinstance(objective, SftObjective):
        total = -(scores.logprobs * targets.weights).sum()
        return total, {"loss": total.detach(), "entropy": scores.entropy.detach().sum()}
    return _grpo_loss(objective, scores, targets)


def _grpo_loss(
    objective: GrpoObjective, scores: TokenScores, targets: TokenTargets
) -> tuple[Tensor, dict[str, Tensor]]:
    behaviour = targets.behaviour_logprobs
    old = behaviour if targets.proximal_logprobs is None else targets.proximal_logprobs
    token_loss, ratio, clipped = clipped_surrogate(
        log_ratios(scores.logprobs, old, targets.sequences, objective.ratio),
        targets.advantages,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
    )
    gap = (behaviour - scores.logprobs).detach()
    sums = {
        "ratio": ratio.detach().sum(),
        "clip_share": clipped.sum(),
        "clip_high_share": (clipped & (targets.advantages > 0)).sum(),
        "entropy": scores.entropy.detach().sum(),
        "kl_engine": gap.sum(),  # k1 of KL(engine || learner): tokens were sampled by the engine
        "logprob_gap": gap.abs().sum(),
    }
    if objective.importance_cap is not None:
        if targets.proximal_logprobs is None:
            raise ValueError("importance weights need proximal log-probabilities")
        importance, capped = importance_weights(targets.proximal_logprobs, behaviour, objective.importance_cap)
        token_loss = importance * token_loss
        sums["importance"] = importance.sum()
        sums["importance_capped_share"] = capped.sum()
    sums["policy_loss"] = (token_loss * targets.weights).sum().detach()
    if objective.kl_coefficient:
        if targets.reference_logprobs is None:
            raise ValueError("a penalty towards a reference needs the reference's log-probabilities")
        kl = kl_estimate(scores.logprobs, targets.reference_logprobs, objective.kl_kind)
        token_loss = token_loss + objective.kl_coefficient * kl
        sums["kl_reference"] = kl.detach().sum()
    if objective.entropy_coefficient:
        token_loss = token_loss - objective.entropy_coefficient * scores.entropy
    total = (token_loss * targets.weights).sum()
    return total, {"loss": total.detach(), **sums}


_WEIGHTED = ("loss", "policy_loss")  # sums that already are those of the batch


def means(sums: dict[str, float], num_loss_tokens: int) -> dict[str, float]:
    """Metrics from the sums over a whole batch: losses as they are, the rest as means over its loss tokens."""
    return {name: value if name in _WEIGHTED else value / num_loss_tokens for name, value in sums.items()}
