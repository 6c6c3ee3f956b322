"""Importance ratios of tokens and of answers."""

from torch import Tensor

from deltarl.rl.objectives.config import Level
from deltarl.rl.objectives.tokens import Tokens

LARGEST_LOG_RATIO = 20.0
"""The log-ratio of a whole answer is held within ± this: its exponential must not overflow."""


def importance_ratio(tokens: Tokens, level: Level) -> Tensor:
    """π / π_old, `[n]`, with gradient.

    token: of each token (PPO, arXiv 1707.06347). sequence: `(π(y)/π_old(y))^(1/|y|)` of its answer y (GSPO, arXiv
    2507.18071, Eq. 7). product: `π(y)/π_old(y)` of its answer (RLOO takes an answer for one action, arXiv 2402.14740).
    """
    log_ratio = tokens.log_ratio
    if level == "sequence":
        log_ratio = tokens.spread(tokens.means(log_ratio))
    elif level == "product":
        log_ratio = tokens.spread(tokens.sums(log_ratio).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
    return log_ratio.exp()
