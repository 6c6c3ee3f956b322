"""The stages of a step, in one process or spread over a fleet, behind the same methods."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

from deltarl.actor.fleet import Fleet
from deltarl.reward.batch import TrainerState
from deltarl.reward.rewards import ScoreReport
from deltarl.rl.in_process import InProcess
from deltarl.rollout.outputs import RequestOutput
from deltarl.rollout.params import SamplingParams


class Sampler(Protocol):
    """`rollout.Engine` is one."""

    def generate(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[RequestOutput]: ...


class RewardStage(Protocol):
    """`reward.Scorer` is one."""

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
        state: TrainerState,
    ) -> ScoreReport: ...


class Ranks(Protocol):
    """The learner; `actor.Gang` is one."""

    def scatter(self, method: str, args: Sequence[tuple[Any, ...]]) -> list[Any]: ...


class FleetSampler:
    """Deals prompts out to rollout workers.

    Which prompts go together depends on the number of workers alone, never on which worker is free or alive, so that
    a rerun or a reissue samples the very same numbers.
    """

    def __init__(self, fleet: Fleet | InProcess):
        self._fleet = fleet

    def generate(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[RequestOutput]:
        parts = min(len(self._fleet), len(prompts))
        shares = [(prompts[i::parts], params[i::parts]) for i in range(parts)]
        results = self._fleet.map("generate", shares)
        return [results[i % parts][i // parts] for i in range(len(prompts))]


class FleetScorer:
    """Deals completions out to reward workers, in runs that keep those of one prompt together.

    A reward may compare the answers to one prompt, and must say the same whatever the number of workers.
    """

    def __init__(self, fleet: Fleet | InProcess):
        self._fleet = fleet

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
        state: TrainerState,
    ) -> ScoreReport:
        starts = [i for i in range(len(prompts)) if i == 0 or prompts[i] != prompts[i - 1]]
        parts = min(len(self._fleet), len(starts))
        bounds = [starts[len(starts) * i // parts] for i in range(parts)] + [len(prompts)]
        runs = [slice(a, b) for a, b in pairwise(bounds)]
        shares = [(prompts[r], completions[r], {name: c[r] for name, c in columns.items()}, state) for r in runs]
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
        metrics={
            name: [v for r in reports for v in r.metrics.get(name, [])] for name in _union(r.metrics for r in reports)
        },
        extras={
            name: [v for r in reports for v in r.extras.get(name, [None] * len(r.scores))]
            for name in _union(r.extras for r in reports)
        },
    )


def _union(mappings: Iterable[Mapping[str, Any]]) -> dict[str, None]:
    """The keys of all, in order: what a plug-in logs may depend on its completions."""
    return {name: None for mapping in mappings for name in mapping}
