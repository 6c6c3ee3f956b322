"""CISPO: every token teaches, with a clipped weight."""

from deltarl.rl.objectives.config import ObjectiveConfig
from deltarl.rl.objectives.ratio import importance_ratio
from deltarl.rl.objectives.tokens import Surrogate, Tokens


def loss(tokens: Tokens, config: ObjectiveConfig) -> Surrogate:
    """REINFORCE with a clipped importance weight that is held constant (MiniMax-M1, arXiv 2506.13585, Eq. 4 and 5).

        loss = −sg(clip(r, 1 − ε, 1 + ε_high)) A log π

    The paper leaves the lower end open, which is `epsilon` 1.
    """
    ratio = importance_ratio(tokens, config.importance_sampling_level).detach()
    low, high = 1 - config.epsilon, 1 + config.epsilon_high
    return Surrogate(
        loss=-ratio.clamp(low, high) * tokens.advantages * tokens.logprobs,
        ratio=ratio,
        clipped_low=ratio < low,
        clipped_high=ratio > high,
    )
