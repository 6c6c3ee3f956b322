"""Sampling ahead: in which order, how far, and what of it is kept."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest

from deltarl.reward.rewards import ScoreReport
from deltarl.reward.tree import Sym
from deltarl.reward.verdict import DecidedBy, Reason, Verdict, VerdictKind
from deltarl.rl.ahead import Ahead
from deltarl.rl.collected import Collected, load_batches, save_batches
from deltarl.rl.data import EncodedPrompt, Example
from deltarl.rl.episodes import Episodes
from deltarl.rl.in_order import InOrder
from deltarl.rollout.outputs import CompletionOutput, RequestOutput, RoutedExperts

PROBLEMS = [EncodedPrompt(i, Example(f"problem {i}", str(i)), f"problem {i}", [i]) for i in range(4)]


def batch(version: int, seed: int = 0) -> Collected:
    """Two problems with two answers each, of numbers that are hard to write down."""
    rng = np.random.default_rng(seed)

    def answer(i: int) -> CompletionOutput:
        n = 1 + int(rng.integers(5))
        logprobs, other = rng.normal(size=(2, n)).tolist()
        experts = RoutedExperts(rng.integers(9, size=(3, 2, 2)), rng.integers(9, size=(n - 1, 2, 2))) if i else None
        return CompletionOutput(i, rng.integers(99, size=n).tolist(), logprobs, other, [version] * n, "stop", 7, "é\n")

    groups = [RequestOutput(f"prompt-{p}", [p, 5], [answer(0), answer(1)]) for p in range(2)]
    verdict = Verdict(VerdictKind.WRONG, 0.0, "x", 0.1, "", DecidedBy.EXACT, None, None, Reason.DIFFERENT)
    verdicts = [verdict, replace(verdict, kind=VerdictKind.RIGHT, score=1.0), verdict, replace(verdict, score=None)]
    report = ScoreReport(
        [0.1, math.inf, 1 / 3, None],
        verdicts,
        {"math": [0.0, 1.0, None, 0.5]},
        {"m/x": [2.0]},
        {"m/y": [1, "a", None, 2]},
    )
    episodes = Episodes([PROBLEMS[3], PROBLEMS[1]], groups, ["a", "b", "\ud800c", "d"], report)
    return Collected(episodes, [0], [3, 1], {"group/kept_frac": 0.5}, {"rollout": 0.25})
