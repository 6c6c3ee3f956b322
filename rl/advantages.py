"""From the scores of a batch to one advantage per sample."""

from typing import Literal

import numpy as np

Baseline = Literal["group", "leave_one_out", "none", "critic"]
ScaleRewards = Literal["group", "batch", "whiten", "none"]


def group_advantages(
    scores: np.ndarray, scale_rewards: ScaleRewards, eps: float = 1e-4, baseline: Baseline = "group"
) -> np.ndarray:
    """A sample's score minus a baseline, scaled.

    Args:
        scores: `[P, G]`, P prompts of G samples; NaN marks a sample without a score.
        scale_rewards: divide by the standard deviation of the group (GRPO, DeepSeekMath, arXiv 2402.03300, §4.1), of
            the whole batch, or by nothing (Dr. GRPO, arXiv 2503.20783, whose point is that the division weights easy
            and hard problems unequally); or whiten: bring what the baseline leaves to mean 0 and standard deviation 1
            over the batch (REINFORCE++, arXiv 2501.03262).
        eps: added to the standard deviation.
        baseline: the mean of the group; leave_one_out, the mean of its other samples (RLOO, arXiv 2402.14740);
            or none. With a critic (rl/credit.py) this function is not used.

    Returns:
        `[P, G]` fp64. Samples without a score get 0; they take no part in the mean. With leave_one_out, so does a
        sample that is the only one of its group with a score.
    """
    known = ~np.isnan(scores)
    count = np.maximum(known.sum(1, keepdims=True), 1)
    filled = np.where(known, scores, 0.0)
    if baseline == "none":
        left = filled
    else:
        left = np.where(known, filled - filled.sum(1, keepdims=True) / count, 0.0)
    if baseline == "leave_one_out":
        left = left * count / np.maximum(count - 1, 1)  # s − mean of the others = (s − mean of all) · n / (n − 1)
    if scale_rewards == "group":
        # n - 1, as torch.std and TRL have it; a group of one sample has no spread to divide by. The spread is that of
        # the scores, whatever the baseline.
        centred = np.where(known, filled - filled.sum(1, keepdims=True) / count, 0.0)
        return left / (np.sqrt((centred**2).sum(1, keepdims=True) / np.maximum(count - 1, 1)) + eps)
    if scale_rewards == "batch":
        spread = np.std(scores[known], ddof=1) if known.sum() > 1 else 0.0
        return left / (spread + eps)
    if scale_rewards == "whiten":
        filled = np.zeros_like(left)
        filled[known] = whitened(left[known], eps)
        return filled
    return left


def whitened(x: np.ndarray, eps: float = 1e-4) -> np.ndarray:
    """`[n]` brought to mean 0 and standard deviation 1; fewer than two are 0."""
    return (x - x.mean()) / (x.std(ddof=1) + eps) if len(x) > 1 else np.zeros_like(x)
