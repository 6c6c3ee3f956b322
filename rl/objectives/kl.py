"""Estimates of KL(policy ‖ reference) from sampled tokens, and a weight that adapts to it."""

import torch
from torch import Tensor

from deltarl.rl.objectives.config import KLEstimator


def kl_estimate(kind: KLEstimator, logprobs: Tensor, ref_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
    """The estimate at each token, `[n]`; with d = log π − log π_ref,

        k1 = d      k2 = d²/2      k3 = e^−d − 1 + d           (Schulman 2020, "Approximating KL divergence")
        k3_straight_through: the value of k3, the gradient of k2
        unbiased = π/π_sampler · k3                            (DeepSeek-V3.2, arXiv 2512.02556)

    k1 and k3 are unbiased in value, k2 and k3 never negative. As a loss, in expectation over samples of π, the
    gradients of k2 and of `unbiased` are that of the KL; that of k1 is zero, and that of k3 is of KL(π_ref ‖ π).
    """
    d = logprobs - ref_logprobs
    if kind == "k1":
        return d
    if kind == "k2":
        return d**2 / 2
    k3 = k3_kl(logprobs, ref_logprobs)
    if kind == "k3_straight_through":
        k2 = d**2 / 2
        return k2 + (k3 - k2).detach()
    if kind == "unbiased":
        return (logprobs - sampler_logprobs).exp() * k3
    return k3


def k3_kl(logprobs: Tensor, other: Tensor) -> Tensor:
    """`exp(δ) − 1 − δ` with δ = other − logprobs: an unbiased, never negative estimate of KL(policy ‖ other) from
    samples of the policy (Schulman 2020, "Approximating KL divergence", k3)."""
    delta = other - logprobs
    return torch.expm1(delta) - delta


def adapted_beta(beta: float, kl: float, target: float, horizon: int) -> float:
    """The KL weight of the next step (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).

        e = clip((kl − target) / target, −0.2, 0.2)      β' = β (1 + e / horizon)

    Args:
        kl: measured in this step, per token.
        horizon: steps; the paper counts samples.
    """
    error = min(0.2, max(-0.2, (kl - target) / target))
    return beta * (1 + error / horizon)
