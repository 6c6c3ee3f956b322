"""The objective, put together from its parts, token by token."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarl.rl.objectives.config import ObjectiveConfig
from deltarl.rl.objectives.correction import correction_weights
from deltarl.rl.objectives.kl import kl_estimate
from deltarl.rl.objectives.tokens import Surrogate, Tokens

Loss = Callable[[Tokens, ObjectiveConfig], Surrogate]


@dataclass(frozen=True)
class TokenLoss:
    """Per completion token, `[n]` each: the loss (to be minimised), and what the metrics are made of."""

    loss: Tensor
    ratio: Tensor
    kl_old: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    kl_ref: Tensor | None
    corrected: Tensor | None


def surrogate(name: str) -> Loss:
    """The surrogate loss of that name: `loss` in the file rl/objectives/losses/{name}.py."""
    return importlib.import_module(f"deltarl.rl.objectives.losses.{name}").loss


def token_loss(
    tokens: Tokens, config: ObjectiveConfig, ref_logprobs: Tensor | None = None, beta: float = 0.0
) -> TokenLoss:
    """`w · surrogate + β · KL(π ‖ π_ref)`, with w the correction for the policy that sampled.

    Args:
        ref_logprobs: `[n]` under the reference model, if the KL is part of the loss.
        beta: weight of the KL.
    """
    out = surrogate(config.loss_type)(tokens, config)
    loss, kl_ref, corrected = out.loss, None, None
    if config.correction != "none":
        weight, corrected = correction_weights(tokens, config.correction, config.correction_bounds)
        loss = loss * weight
    if ref_logprobs is not None:
        kl_ref = kl_estimate(config.kl_estimator, tokens.logprobs, ref_logprobs, tokens.sampler_logprobs)
        loss = loss + beta * kl_ref
    log_ratio = tokens.log_ratio.detach()
    return TokenLoss(
        loss=loss,
        ratio=out.ratio,
        kl_old=torch.expm1(log_ratio) - log_ratio,
        clipped_low=out.clipped_low,
        clipped_high=out.clipped_high,
        kl_ref=None if kl_ref is None else kl_ref.detach(),
        corrected=corrected,
    )
