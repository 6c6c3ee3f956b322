"""From the scores of a batch to one advantage per sample."""

from typing import Literal

import numpy as np

ScaleRewards = Literal["group", "batch", "none"]


def group_advantages(scores: np.ndarray, scale_rewards: ScaleRewards, eps: float = 1e-4) -> np.ndarray:
    """GRPO's advantage: a sample's score minus the mean of its group (DeepSeekMath, arXiv 2402.03300, §4.1).

    Args:
        scores: `[P, G]`, P prompts of G samples; NaN marks a sample without a score.
        scale_rewards: divide by the standard deviation of the group (GRPO), of the whole batch, or by nothing
            (Dr. GRPO, arXiv 2503.20783, whose point is that the division weights easy and hard problems unequally).
        eps: added to the standard deviation.

    Returns:
        `[P, G]` fp64. Samples without a score get 0; they take no part in the mean.
    """
    known = ~np.isnan(scores)
    count = np.maximum(known.sum(1, keepdims=True), 1)
    filled = np.where(known, scores, 0.0)
    centred = np.where(known, filled - filled.sum(1, keepdims=True) / count, 0.0)
    if scale_rewards == "group":
        # n - 1, as torch.std and TRL have it; a group of one sample has no spread to divide by.
        return centred / (np.sqrt((centred**2).sum(1, keepdims=True) / np.maximum(count - 1, 1)) + eps)
    if scale_rewards == "batch":
        spread = np.std(scores[known], ddof=1) if known.sum() > 1 else 0.0
        return centred / (spread + eps)
    return centred
