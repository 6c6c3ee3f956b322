"""Answers for the tests of objectives, and gradients by differences."""

from collections.abc import Callable

import numpy as np
import torch

from deltarl.rl.objectives.tokens import Tokens

LENGTHS = [5, 1, 12, 7, 3, 12]
ANSWERS = [slice(a, a + n) for a, n in zip(np.cumsum([0, *LENGTHS[:-1]]), LENGTHS, strict=True)]


def arrays(spread: float = 0.5, seed: int = 0) -> dict[str, np.ndarray]:
    """Log-probabilities of four policies some `spread` apart, and advantages of both signs and 0, one an answer."""
    rng = np.random.default_rng(seed)
    n = sum(LENGTHS)
    new = np.log(rng.uniform(0.05, 1, n))
    signs = rng.permutation([1.3, -0.7, 0.4, -1.1, 0.0, 0.9])
    return {
        "new": new,
        "old": new - rng.normal(0, spread, n),
        "sampler": new - rng.normal(0, spread, n),
        "ref": new - rng.normal(0, 0.3, n),
        "advantages": np.repeat(signs, LENGTHS),
    }


def tokens(a: dict[str, np.ndarray]) -> Tokens:
    """The same as the learner has it, in fp64."""
    new, old, sampler, advantages = (torch.tensor(a[name]) for name in ("new", "old", "sampler", "advantages"))
    return Tokens(new.requires_grad_(), old, sampler, advantages, torch.tensor(LENGTHS))


def by_differences(f: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient of `f`."""
    unit = np.eye(len(at)) * step
    return np.array([(f(at + u) - f(at - u)) / (2 * step) for u in unit])


def per_answer(x: np.ndarray, f: Callable[[np.ndarray], float]) -> np.ndarray:
    """`f` of each answer's tokens, at each of its tokens."""
    return np.concatenate([np.full(n, f(x[s])) for s, n in zip(ANSWERS, LENGTHS, strict=True)])
