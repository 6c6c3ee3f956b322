"""The two stages before the learner, in one process or spread over a fleet, behind the same two methods."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

from deltarl.actor.fleet import Fleet
from deltarl.reward.rewards import ScoreReport
from deltarl.rollout.params import SamplingParams, Trajectory


class Sampler(Protocol):
    """`rollout.Engine` is one."""

    def generate(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> list[list[Trajectory]]: ...


class RewardStage(Protocol):
    """`reward.Scorer` is one."""

    def score(
        self, prompts: Sequence[Any], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> ScoreReport: ...


class FleetSampler:
    """Deals prompts out to rollout workers.

    Which prompts go together depends on the number of workers alone, never on which worker is free or alive, so that
    a rerun or a reissue samples the very same numbers.
    """

    def __init__(self, fleet: Fleet):
        self._fleet = fleet

    def generate(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[list[Trajectory]]:
        parts = min(len(self._fleet), len(prompts))
        shares = [(prompts[i::parts], params[i::parts]) for i in range(parts)]
        results = self._fleet.map("generate", shares)
        return [results[i % parts][i // parts] for i in range(len(prompts))]


class FleetScorer:
    """Deals completions out to reward workers, in runs."""

    def __init__(self, fleet: Fleet):
        self._fleet = fleet

    def score(
        self, prompts: Sequence[Any], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> ScoreReport:
        parts = min(len(self._fleet), len(completions))
        bounds = [len(completions) * i // parts for i in range(parts + 1)]
        runs = [slice(a, b) for a, b in pairwise(bounds)]
        shares = [(prompts[r], completions[r], {name: c[r] for name, c in columns.items()}) for r in runs]
        return merge_reports(self._fleet.map("score", shares))


def merge_reports(reports: Sequence[ScoreReport]) -> ScoreReport:
    """Reports of consecutive runs of completions as one."""
    verdicts = None
    if reports[0].verdicts is not None:
        verdicts = [v for report in reports for v in report.verdicts or []]
    return ScoreReport(
        scores=[s for report in reports for s in report.scores],
        verdicts=verdicts,
        components={name: [s for r in reports for s in r.components[name]] for name in reports[0].components},
    )
