"""The GRPO objective, token by token."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLoss:
    """Per completion token, `[n]` each: the loss (to be minimised), and what the metrics are made of."""

    loss: Tensor
    ratio: Tensor
    kl_old: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    kl_ref: Tensor | None


def k3_kl(logprobs: Tensor, other: Tensor) -> Tensor:
    """`exp(δ) − 1 − δ` with δ = other − logprobs: an unbiased, never negative estimate of KL(policy ‖ other) from
    samples of the policy (Schulman 2020, "Approximating KL divergence", k3)."""
    delta = other - logprobs
    return torch.expm1(delta) - delta


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    ref_logprobs: Tensor | None = None,
    *,
    epsilon: float,
    epsilon_high: float,
    beta: float,
) -> TokenLoss:
    """Clipped policy-gradient loss with a KL penalty (GRPO, arXiv 2402.03300, Eq. 3; clip-higher: DAPO, 2503.14476).

        ratio = exp(logπ − logπ_old)
        loss = −min(ratio·A, clip(ratio, 1 − ε, 1 + ε_high)·A) + β·k3(π, π_ref)

    The sum over tokens is divided by the completion tokens of the *global* batch (DAPO's token-level normalisation)
    by the caller, so that the gradient does not depend on how the batch is split.

    Args:
        logprobs: `[n]` log-probabilities of the sampled tokens under the current weights, with gradient.
        old_logprobs: `[n]` under the weights that sampled them.
        advantages: `[n]`, each token that of its sample.
        ref_logprobs: `[n]` under the reference model; needed if `beta` is above 0.
    """
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    kl_ref = None
    if beta > 0:
        assert ref_logprobs is not None, "beta > 0 needs the reference model's log-probabilities"
        kl_ref = k3_kl(logprobs, ref_logprobs)
        loss = loss + beta * kl_ref
    with torch.no_grad():
        return TokenLoss(
            loss=loss,
            ratio=ratio.detach(),
            kl_old=torch.expm1(log_ratio) - log_ratio,
            clipped_low=(ratio < 1 - epsilon) & (advantages < 0),
            clipped_high=(ratio > 1 + epsilon_high) & (advantages > 0),
            kl_ref=None if kl_ref is None else kl_ref.detach(),
        )
