"""PPO's clipped surrogate, and with it GRPO, Dr. GRPO, DAPO, GSPO, RLOO and REINFORCE++."""

import torch

from deltarl.rl.objectives.config import ObjectiveConfig
from deltarl.rl.objectives.ratio import importance_ratio
from deltarl.rl.objectives.tokens import Surrogate, Tokens


def loss(tokens: Tokens, config: ObjectiveConfig) -> Surrogate:
    """The pessimistic one of the ratio's and the clipped ratio's surrogate.

        loss = −min(r A, clip(r, 1 − ε, 1 + ε_high) A)

    with r of a token (PPO, arXiv 1707.06347, Eq. 7; GRPO, 2402.03300, Eq. 3; ε_high: DAPO, 2503.14476, Eq. 8) or of an
    answer (GSPO, 2507.18071, Eq. 5). With `dual_clip` c (dual-clip PPO, 1912.09729), where A < 0

        loss = min(that, −c A)

    so that a token the policy has moved towards cannot weigh without bound.
    """
    ratio = importance_ratio(tokens, config.importance_sampling_level)
    advantages = tokens.advantages
    clipped = ratio.clamp(1 - config.epsilon, 1 + config.epsilon_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    if config.dual_clip is not None:
        bounded = torch.minimum(loss, -config.dual_clip * advantages)
        loss = torch.where(advantages < 0, bounded, loss)
    ratio = ratio.detach()
    return Surrogate(
        loss=loss,
        ratio=ratio,
        clipped_low=(ratio < 1 - config.epsilon) & (advantages < 0),
        clipped_high=(ratio > 1 + config.epsilon_high) & (advantages > 0),
    )
