"""Numbers of an evaluation, each as one value a problem, so that their mean has a confidence interval."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95


def pass_at_k(right: np.ndarray, k: int) -> np.ndarray:
    """Chance that one of k answers is right, from n ≥ k answers to each problem, without bias, `[P]`.

    `1 − C(n − c, k) / C(n, k)` for c right ones (Codex, arXiv 2107.03374, Eq. 1); for k = 1 the mean, c / n.

    Args:
        right: `[P, n]` bool.
    """
    n = right.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs between 1 and n = {n} samples per problem")
    return np.array([1 - math.comb(n - int(c), k) / math.comb(n, k) for c in right.sum(1)])


def majority_right(right: Sequence[bool], answers: Sequence[str | None], same: Callable[[str, str], bool]) -> float:
    """Whether most of the answers to one problem agree on a right one (self-consistency, arXiv 2203.11171): 1, 0, or
    between where several answers have as many votes, the chance of drawing a right one among them.

    Right answers are one answer, since each equals the reference. The others are counted by their text without spaces
    and case; `same` joins those that are equal but written differently, and is only asked where that could change the
    outcome.

    Args:
        answers: what was read in each; a wrong one that is None does not vote.
        same: whether two answers are equal.
    """
    votes = sum(right)
    others = Counter(
        "".join(a.split()).casefold() for r, a in zip(right, answers, strict=True) if not r and a is not None
    )
    most = max(others.values(), default=0)
    tied = sum(count == most for count in others.values())
    if most <= votes <= others.total() and len(others) > 1:
        most, tied = _joined(others, same)
    if votes == 0 or votes < most:
        return 0.0
    return 1.0 if votes > most else 1 / (1 + tied)


def _joined(counts: Counter[str], same: Callable[[str, str], bool]) -> tuple[int, int]:
    """Largest number of votes, and how many answers have it, after equal ones were joined."""
    classes: list[tuple[str, int]] = []
    for text, count in counts.most_common():
        for i, (representative, votes) in enumerate(classes):
            if same(text, representative):
                classes[i] = representative, votes + count
                break
        else:
            classes.append((text, count))
    most = max(votes for _, votes in classes)
    return most, sum(votes == most for _, votes in classes)


def with_interval(values: dict[str, np.ndarray]) -> dict[str, float]:
    """The mean of each `[P]`, and as `name/low` and `name/high` its 95% confidence interval over problems.

    Percentile bootstrap (Efron 1979): problems drawn with replacement, the same draws for all names.
    """
    rows = np.stack(list(values.values()))
    rng = np.random.Generator(np.random.PCG64(0))
    count = rows.shape[1]
    means = np.stack([rows[:, rng.integers(count, size=count)].mean(1) for _ in range(RESAMPLES)])
    outside = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(means, [outside, 100 - outside], axis=0)
    found = dict[str, float]()
    for i, name in enumerate(values):
        found |= {name: float(rows[i].mean()), f"{name}/low": float(low[i]), f"{name}/high": float(high[i])}
    return found
