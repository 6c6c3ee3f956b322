"""Forget gate and key normalisation: what turns a layer's projections into the inputs of the recurrence."""

import torch
import torch.nn.functional as F
from torch import Tensor


def log_decay(x: Tensor, a_log: Tensor, dt_bias: Tensor, lower_bound: float | None = None) -> Tensor:
    """Log of the per-channel decay of a token, in fp32 (Kimi Linear, arXiv 2510.26692, Eq. 10).

    Unbounded (the released Kimi-Linear-48B): `g = -exp(a_log) * softplus(x + dt_bias)`.
    Bounded (Kimi-K3 and others): `g = lower_bound * sigmoid(exp(a_log) * (x + dt_bias))`, so `g > lower_bound`.

    Args:
        x: `[..., H, K]` gate pre-activation, any float dtype.
        a_log: any shape with H elements.
        dt_bias: any shape with H*K elements.
        lower_bound: the bound, below 0, or None for the unbounded gate.

    Returns:
        `[..., H, K]`, fp32 (fp64 if `x` is), never above 0.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    heads, dim = x.shape[-2:]
    x = x.to(dtype) + dt_bias.to(dtype).view(heads, dim)
    rate = a_log.to(dtype).reshape(heads, 1).exp()
    if lower_bound is None:
        return -rate * F.softplus(x)
    if lower_bound >= 0:
        raise ValueError(f"lower_bound must be below 0, got {lower_bound}")
    return lower_bound * torch.sigmoid(rate * x)


def l2norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """`x / sqrt(sum(x²) + eps)` over the last dimension, as fla defines it (eps inside the root, not a floor)."""
    return x * inverse_norm(x, eps)


def inverse_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """`1 / sqrt(sum(x²) + eps)` over the last dimension, which is kept."""
    return torch.rsqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() + eps)
