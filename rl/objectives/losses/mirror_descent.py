"""Kimi k1.5's policy mirror descent, with which Kimi Linear was trained too."""

import torch

from deltarl.rl.objectives.config import ObjectiveConfig
from deltarl.rl.objectives.tokens import Surrogate, Tokens


def loss(tokens: Tokens, config: ObjectiveConfig) -> Surrogate:
    """Squared log-ratio surrogate over whole answers (Kimi k1.5, arXiv 2501.12599, section 2.3.2).

    The optimum of the reward under a KL to the policy the iteration started with satisfies
    `r − τ log Z = τ log(π/π_old)`. The paper minimises the square of the difference with the group's mean reward for
    `τ log Z`; with A the advantage and ℓ = Σ_t log(π/π_old) over the answer, that is, up to a constant and 1 / 2τ,

        loss = −A ℓ + τ/2 ℓ²

    whose gradient is the paper's, `−(∇log π A − τ/2 ∇ℓ²)`. Nothing is clipped: far from the old policy the square
    pulls back.
    """
    log_ratio = tokens.log_ratio
    distance = tokens.spread(tokens.sums(log_ratio))
    nothing = torch.zeros_like(distance, dtype=torch.bool)
    return Surrogate(
        loss=-tokens.advantages * distance + config.tau / 2 * distance**2,
        ratio=log_ratio.detach().exp(),
        clipped_low=nothing,
        clipped_high=nothing,
    )
