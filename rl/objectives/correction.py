"""Importance weights for answers that another policy sampled than the one an iteration starts with.

The sampler may run other kernels, another precision or older weights. The loss is then an expectation under the wrong
policy, which the weight π_old / π_sampler puts right; its bounds trade that bias against variance.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from deltarl.rl.objectives.config import Correction
from deltarl.rl.objectives.ratio import LARGEST_LOG_RATIO
from deltarl.rl.objectives.tokens import Tokens

USUAL_BOUNDS: dict[str, tuple[float, float]] = {
    "token_truncate": (0.0, 2.0),  # TIS, Yao et al. 2025; slime's and verl's default
    "token_mask": (0.5, 5.0),  # IcePop, Ling team 2025
    "sequence_truncate": (0.0, 5.0),
    "sequence_mask": (0.0, 3.0),  # MIS, "When Speed Kills Stability" 2025; TRL's default
    "geometric_truncate": (0.99, 1.01),
    "geometric_mask": (0.99, 1.01),
}


class Weights(NamedTuple):
    """`weight` `[n]`, and `changed` `[n]` bool where a bound cut it."""

    weight: Tensor
    changed: Tensor


def correction_weights(tokens: Tokens, kind: Correction, bounds: tuple[float, float] | None) -> Weights:
    """The factors of the tokens' losses, without gradient.

        w = π_old / π_sampler  of the token, of its answer (sequence: the product over tokens), or the answer's
                               geometric mean
        truncate: min(max(w, low), high)      mask: w if low ≤ w ≤ high, else 0

    Args:
        bounds: (low, high); None is `USUAL_BOUNDS` of the kind, which must not be "none".
    """
    low, high = bounds or USUAL_BOUNDS[kind]
    level, _, action = kind.partition("_")
    with torch.no_grad():
        log_weight = tokens.old_logprobs - tokens.sampler_logprobs
        if level == "sequence":
            log_weight = tokens.spread(tokens.sums(log_weight))
        elif level == "geometric":
            log_weight = tokens.spread(tokens.means(log_weight))
        raw = log_weight.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
        outside = (raw < low) | (raw > high)
        weight = raw.clamp(low, high) if action == "truncate" else torch.where(outside, 0.0, raw)
        return Weights(weight, outside)
