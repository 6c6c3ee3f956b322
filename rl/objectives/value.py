"""The loss of a critic."""

from typing import NamedTuple

import torch
from torch import Tensor


class ValueLoss(NamedTuple):
    """`loss` `[n]` to be minimised, and `clipped` `[n]` bool where the clip range keeps a value from being moved."""

    loss: Tensor
    clipped: Tensor


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> ValueLoss:
    """Half the squared error, or with `clip` c the larger one of it and that of the clipped value, `[n]` each.

        loss = ½ max((V − R)², (clip(V, V_old − c, V_old + c) − R)²)

    so that values move by no more than c from those the iteration started with (PPO as in OpenAI's baselines; Engstrom
    et al. 2020, arXiv 2005.12729, section 3).
    """
    error = (values - returns) ** 2
    if clip is None:
        return ValueLoss(error / 2, torch.zeros_like(error, dtype=torch.bool))
    bounded = (torch.maximum(torch.minimum(values, old_values + clip), old_values - clip) - returns) ** 2
    return ValueLoss(torch.maximum(error, bounded) / 2, bounded.detach() > error.detach())
