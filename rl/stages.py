"""The stages of a step, in one process or spread over a fleet, behind the same methods."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Protocol

from deltarl.actor.apart import map_apart
from deltarl.actor.fleet import Fleet
from deltarl.reward.batch import TrainerState
from deltarl.reward.rewards import ScoreReport
from deltarl.reward.verdict import Reason, Verdict, VerdictKind
from deltarl.rl.faults import Faults
from deltarl.rl.in_process import InProcess
from deltarl.rollout.outputs import RequestOutput
from deltarl.rollout.params import SamplingParams


class Sampler(Protocol):
    """`rollout.Engine` is one. None stands for a prompt that no answers could be sampled to."""

    def generate(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> Sequence[RequestOutput | None]: ...


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
    a rerun or a reissue samples the very same numbers. Prompts that kill workers are set aside: they have no answers.
    """

    def __init__(self, fleet: Fleet | InProcess, faults: Faults, decode: Callable[[list[int]], str] = str):
        """
        Args:
            faults: knows the prompts set aside, and is told of new ones.
            decode: token ids to text, to tell which they are.
        """
        self._fleet, self._faults, self._decode = fleet, faults, decode

    def generate(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> list[RequestOutput | None]:
        parts, known = min(len(self._fleet), len(prompts)), self._faults.has_prompt
        dealt = [[i for i in range(p, len(prompts), parts) if not known(prompts[i])] for p in range(parts)]
        shares = [share for share in dealt if share]
        results, aside = map_apart(
            self._fleet, "generate", shares, lambda share: ([prompts[i] for i in share], [params[i] for i in share])
        )
        for i in aside:
            self._faults.prompt(prompts[i], self._decode(list(prompts[i])))
        groups: list[RequestOutput | None] = [None] * len(prompts)
        for share, result in zip(shares, results, strict=True):
            for i, group in zip((i for i in share if i not in aside), result or (), strict=True):
                groups[i] = group
        return groups


class FleetScorer:
    """Deals completions out to reward workers, in runs that keep those of one prompt together.

    A reward may compare the answers to one prompt, and must say the same whatever the number of workers. Completions
    that kill workers have no score.
    """

    def __init__(self, fleet: Fleet | InProcess, faults: Faults):
        """
        Args:
            faults: knows the completions without a score, and is told of new ones.
        """
        self._fleet, self._faults = fleet, faults

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
        state: TrainerState,
    ) -> ScoreReport:
        starts = [i for i in range(len(prompts)) if i == 0 or prompts[i] != prompts[i - 1]]
        parts, known = min(len(self._fleet), len(starts)), self._faults.has_answer
        bounds = [starts[len(starts) * i // parts] for i in range(parts)] + [len(prompts)]
        dealt = [[i for i in range(*bound) if not known(prompts[i], completions[i])] for bound in pairwise(bounds)]
        shares = [share for share in dealt if share]

        def item(share: Sequence[int]) -> tuple[Any, ...]:
            chosen = {name: [column[i] for i in share] for name, column in columns.items()}
            return [prompts[i] for i in share], [completions[i] for i in share], chosen, state

        reports, aside = map_apart(self._fleet, "score", shares, item)
        for i in aside:
            self._faults.answer(prompts[i], completions[i])
        scored = [i for share in shares for i in share if i not in aside]
        found = [r for r in reports if r is not None]
        nothing = ScoreReport(scores=[], verdicts=None, components={}, metrics={}, extras={})
        return _spread(merge_reports(found) if found else nothing, scored, len(prompts))


LOST = Verdict(VerdictKind.ERROR, None, None, 0.0, "the reward worker died", reason=Reason.CRASH)


def merge_reports(reports: Sequence[ScoreReport]) -> ScoreReport:
    """Reports of consecutive runs of completions as one."""
    verdicts = None
    if any(report.verdicts is not None for report in reports):
        # Without verdicts where others have them: none of its completions came back.
        verdicts = [v for r in reports for v in (r.verdicts if r.verdicts is not None else [LOST] * len(r.scores))]
    return ScoreReport(
        scores=[s for report in reports for s in report.scores],
        verdicts=verdicts,
        components={
            name: [s for r in reports for s in r.components.get(name, [None] * len(r.scores))]
            for name in _union(r.components for r in reports)
        },
        metrics={
            name: [v for r in reports for v in r.metrics.get(name, [])] for name in _union(r.metrics for r in reports)
        },
        extras={
            name: [v for r in reports for v in r.extras.get(name, [None] * len(r.scores))]
            for name in _union(r.extras for r in reports)
        },
    )


def _spread(report: ScoreReport, places: Sequence[int], total: int) -> ScoreReport:
    """The report of some of `total` completions as one of all of them; the others have no score."""
    if len(places) == total:
        return report

    def spread(values: Sequence[Any], missing: Any = None) -> list[Any]:
        found = dict(zip(places, values, strict=True))
        return [found.get(i, missing) for i in range(total)]

    return replace(
        report,
        scores=spread(report.scores),
        verdicts=None if report.verdicts is None else spread(report.verdicts, LOST),
        components={name: spread(values) for name, values in report.components.items()},
        extras={name: spread(values) for name, values in report.extras.items()},
    )


def _union(mappings: Iterable[Mapping[str, Any]]) -> dict[str, None]:
    """The keys of all, in order: what a plug-in logs may depend on its completions."""
    return {name: None for mapping in mappings for name in mapping}
