"""Losses as pure functions of log-probabilities, masks and advantages.

Every loss is a sum over tokens, each with a weight that is known before the batch is cut (`token_weights`). Summed over the
micro-batches of all ranks it is the loss of the whole batch, so neither the cut nor the padding can change the gradient.
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
    mask: Tensor, aggregation: Aggregation, *, num_loss_tokens: int, num_samples: int, fixed_length: int = 1
) -> Tensor:
    """The weight of each token's loss; the counts are those of the whole batch, over all ranks and micro-batches.

    token_mean: 1 / num_loss_tokens, every token counts the same (DAPO, arXiv 2503.14476).
    sequence_mean: 1 / (num_samples * loss tokens of the sequence), every sequence counts the same (DeepSeekMath, equation 3).
    fixed_length: 1 / (num_samples * fixed_length), no bias by length (Dr. GRPO, arXiv 2503.20783).

    Args:
        mask: bool [B, T], True where a token carries loss.

    Returns:
        float32 [B, T], 0 where the mask is False.
    """
    weights = mask.float()  # [B, T]
    if aggregation == "token_mean":
        return weights / num_loss_tokens
    if aggregation == "sequence_mean":
        return weights / (weights.sum(dim=1, keepdim=True).clamp(min=1) * num_samples)
    return weights / (num_samples * fixed_length)


def log_ratios(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, level: RatioLevel) -> Tensor:
    """log(pi / pi_old), [B, T]: of each token (PPO), or of its whole sequence, as the mean over the sequence's loss tokens.

    The latter is GSPO, arXiv 2507.18071, equation 7: one ratio for all tokens of a row, so that a sequence is clipped as a whole.
    """
    difference = torch.where(mask, logprobs - old_logprobs, 0)  # [B, T]
    if level == "sequence":
        mean = difference.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)  # [B, 1]
        difference = torch.where(mask, mean, 0)
    return difference.clamp(max=_MAX_LOG_RATIO)


def clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) of each token: PPO, arXiv 1707.06347, equation 7.

    A `clip_high` above `clip_low` is DAPO's "clip-higher" (arXiv 2503.14476): rare good tokens may grow.

    Args:
        log_ratio: [B, T], of `log_ratios`; gradients flow through these alone.
        advantages: [B, T].

    Returns:
        The loss [B, T], the ratio [B, T] and, bool [B, T], where clipping took the gradient away.
    """
    ratio = log_ratio.exp()
    free = ratio * advantages
    limited = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return -torch.minimum(free, limited), ratio, limited < free


def importance_weights(proximal_logprobs: Tensor, behaviour_logprobs: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """min(pi_proximal / pi_behaviour, cap) of each token: what sampled differs from what the step starts from, by age or by numerics.

    Truncated importance sampling; with the ratio taken against the proximal policy this is decoupled PPO (arXiv 2110.00641, equation 4).

    Returns:
        The weights [B, T] without gradients, and bool [B, T], where the cap took hold.
    """
    weights = (proximal_logprobs - behaviour_logprobs).clamp(max=_MAX_LOG_RATIO).exp().detach()
    return weights.clamp(max=cap), weights > cap


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, kind: KlKind) -> Tensor:
    """An estimate of KL(policy || reference) for each sampled token, [B, T].

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
    """What a policy says about the tokens of a micro-batch: [B, T], 0 where the loss mask is False."""

    logprobs: Tensor  # float32 [B, T]
    entropy: Tensor  # float32 [B, T], nats


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTargets:
    """What a loss needs to know of the tokens of a micro-batch beside their scores."""

    mask: Tensor  # bool [B, T]
    weights: Tensor  # float32 [B, T], of `token_weights`
    behaviour_logprobs: Tensor  # float32 [B, T], of the engine that sampled
    advantages: Tensor  # float32 [B, T]
    # float32 [B, T], of the weights that the step started from; None: behaviour_logprobs
    proximal_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None  # float32 [B, T], where there is a penalty towards a reference


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
    mask, behaviour = targets.mask, targets.behaviour_logprobs
    old = behaviour if targets.proximal_logprobs is None else targets.proximal_logprobs
    token_loss, ratio, clipped = clipped_surrogate(
        log_ratios(scores.logprobs, old, mask, objective.ratio),
        targets.advantages,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
    )
    gap = torch.where(mask, behaviour - scores.logprobs, 0).detach()
    sums = {
        "ratio": torch.where(mask, ratio, 0).detach().sum(),
        "clip_share": (clipped & mask).sum(),
        "clip_high_share": (clipped & mask & (targets.advantages > 0)).sum(),
        "entropy": scores.entropy.detach().sum(),
        "kl_engine": gap.sum(),  # k1 of KL(engine || learner): tokens were sampled by the engine
        "logprob_gap": gap.abs().sum(),
    }
    if objective.importance_cap is not None:
        if targets.proximal_logprobs is None:
            raise ValueError("importance weights need proximal log-probabilities")
        importance, capped = importance_weights(targets.proximal_logprobs, behaviour, objective.importance_cap)
        token_loss = importance * token_loss
        sums["importance"] = torch.where(mask, importance, 0).sum()
        sums["importance_capped_share"] = (capped & mask).sum()
    sums["policy_loss"] = (token_loss * targets.weights).sum().detach()
    if objective.kl_coefficient:
        if targets.reference_logprobs is None:
            raise ValueError("a penalty towards a reference needs the reference's log-probabilities")
        kl = kl_estimate(scores.logprobs, targets.reference_logprobs, objective.kl_kind)
        token_loss = token_loss + objective.kl_coefficient * kl
        sums["kl_reference"] = torch.where(targets.mask, kl, 0).detach().sum()
    if objective.entropy_coefficient:
        token_loss = token_loss - objective.entropy_coefficient * scores.entropy
    total = (token_loss * targets.weights).sum()
    return total, {"loss": total.detach(), **sums}


_WEIGHTED = ("loss", "policy_loss")  # sums that already are those of the batch


def means(sums: dict[str, float], num_loss_tokens: int) -> dict[str, float]:
    """Metrics from the sums over a whole batch: losses as they are, the rest as means over its loss tokens."""
    return {name: value if name in _WEIGHTED else value / num_loss_tokens for name, value in sums.items()}
