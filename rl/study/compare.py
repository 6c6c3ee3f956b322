"""What the final evaluations say: paired differences between arms, with intervals, and a verdict in words."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy import stats

from deltarl.rl.eval_stats import pass_at_k
from deltarl.rl.study.runs import StudyRun
from deltarl.rl.study.worker import FINAL_FILE

RESAMPLES = 10_000


@dataclass(frozen=True)
class ArmResult:
    """The final accuracy of an arm.

    Attributes:
        right: `[S, P]` for each seed and problem the share of right answers.
        accuracy: their mean.
        spread: standard deviation over seeds, NaN for one.
        passes: pass@k by k, mean over seeds.
    """

    name: str
    right: np.ndarray
    accuracy: float
    spread: float
    passes: dict[int, float]


@dataclass(frozen=True)
class Difference:
    """An arm's accuracy less the baseline's, in the same seeds and on the same problems.

    Attributes:
        bootstrap: paired bootstrap interval: seeds drawn with replacement, and problems.
        student: Student's interval over seeds, which few seeds do not make too narrow; NaN for one seed.
        wins: seeds in which the arm is ahead.
    """

    arm: str
    baseline: str
    mean: float
    bootstrap: tuple[float, float]
    student: tuple[float, float]
    wins: int
    seeds: int

    @property
    def low(self) -> float:
        """Of the interval that holds both."""
        return float(np.fmin(self.bootstrap[0], self.student[0]))

    @property
    def high(self) -> float:
        return float(np.fmax(self.bootstrap[1], self.student[1]))

    @property
    def verdict(self) -> str:
        """In words: ahead or behind only of several seeds, and where the interval is on one side of 0."""
        seeds = f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"
        bounds = f"95 % interval {_points(self.low)} to {_points(self.high)}, {seeds}"
        if self.seeds > 1 and (self.low > 0 or self.high < 0):
            word = "ahead of" if self.mean > 0 else "behind"
            return f"{self.arm} {word} {self.baseline} by {abs(100 * self.mean):.1f} points, {bounds}"
        why = "one seed says nothing about others" if self.seeds == 1 else f"ahead in {self.wins} of {seeds}"
        return f"{self.arm} and {self.baseline} are not told apart: {_points(self.mean)} points, {bounds} ({why})"


def arm_result(name: str, runs: Sequence[StudyRun]) -> ArmResult:
    """The final evaluations of an arm's runs, in the order of their seeds."""
    files = [json.loads((run.config.run_dir / FINAL_FILE).read_text()) for run in runs]
    samples = files[0]["settings"]["num_samples"]
    counts = np.array([file["found"]["right"] for file in files])
    per_seed = counts.mean(1) / samples
    sizes = sorted({1, *(2**i for i in range(samples.bit_length())), samples} & set(range(1, samples + 1)))
    every = (counts[..., None] > np.arange(samples)).reshape(-1, samples)
    return ArmResult(
        name,
        counts / samples,
        float(per_seed.mean()),
        float(per_seed.std(ddof=1)) if len(files) > 1 else float("nan"),
        {k: float(pass_at_k(every, k).mean()) for k in sizes},
    )


def compare(arm: ArmResult, baseline: ArmResult, shared_problems: bool) -> Difference:
    """The paired difference of two arms with the same seeds.

    Args:
        shared_problems: the held-out problems are those of a file, the same for every seed; else each seed has its own.
    """
    paired = arm.right - baseline.right
    seeds, problems = paired.shape
    rows = 1 if shared_problems else seeds
    rng = np.random.Generator(np.random.PCG64(0))
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = rng.integers(seeds, size=seeds)
        means[i] = paired[drawn[:, None], rng.integers(problems, size=(rows, problems))].mean()
    low, high = np.percentile(means, [2.5, 97.5])
    per_seed = paired.mean(1)
    half = float("nan")
    if seeds > 1:
        half = float(stats.t.ppf(0.975, seeds - 1) * per_seed.std(ddof=1) / sqrt(seeds))
    mean = float(per_seed.mean())
    wins = int((per_seed > 0).sum())
    bootstrap, student = (float(low), float(high)), (mean - half, mean + half)
    return Difference(arm.name, baseline.name, mean, bootstrap, student, wins, seeds)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
