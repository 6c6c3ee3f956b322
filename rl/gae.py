"""Generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438)."""

from collections.abc import Sequence

import numpy as np


def gae(
    rewards: Sequence[np.ndarray], values: Sequence[np.ndarray], gamma: float, lam: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Advantages and returns of each answer's tokens.

        δ_t = r_t + γ V_{t+1} − V_t      A_t = δ_t + γ λ A_{t+1}      R_t = A_t + V_t      (Eq. 11, 16)

    V_t is of the state before token t, and 0 after the last token, also of an answer cut at the token limit: the limit
    is part of the task, the verifier's score is all that a cut answer gets, and a value in its place would pay for what
    was never written (Pardo et al. 2018, arXiv 1712.00378, section 2).

    Args:
        rewards, values: `[n_i]` of the tokens of answer i.

    Returns:
        `[n_i]` fp64 each.
    """
    lengths = [len(r) for r in rewards]
    longest = max(lengths, default=0)
    # Padded with zeros at the end, which is the value and the advantage that follow a last token.
    r, v = np.zeros((len(lengths), longest)), np.zeros((len(lengths), longest + 1))
    for i, n in enumerate(lengths):
        r[i, :n], v[i, :n] = rewards[i], values[i]
    deltas = r + gamma * v[:, 1:] - v[:, :-1]
    advantages = np.zeros_like(v)
    for t in reversed(range(longest)):
        advantages[:, t] = deltas[:, t] + gamma * lam * advantages[:, t + 1]
    found = [advantages[i, :n] for i, n in enumerate(lengths)]
    return found, [a + v[i, :n] for i, (a, n) in enumerate(zip(found, lengths, strict=True))]


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """`1 − Var(R − V) / Var(R)`: 1 for a critic that knows every return, 0 for one that says the same everywhere,
    below 0 for one that is worse than that; NaN where all returns are equal."""
    spread = float(returns.var()) if returns.size else 0.0
    return 1 - float((returns - values).var()) / spread if spread > 0 else float("nan")
