"""The rewards of a run as one object: a weighted sum of the math verifier and plug-ins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltarl.reward.batch import Batch, TrainerState
from deltarl.reward.call import Plugin
from deltarl.reward.log import RewardLog
from deltarl.reward.plugin import load_reward
from deltarl.reward.question import questions_of
from deltarl.reward.verdict import Verdict
from deltarl.reward.verifier import Verifier

MATH = "math"
"""The spec of the built-in verifier."""


@dataclass(frozen=True)
class RewardSpec:
    """One reward: ``spec`` is ``"math"`` or what ``load_reward`` takes, ``args`` sets parameters of a plug-in."""

    name: str
    spec: str = MATH
    weight: float = 1.0
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreReport:
    """Scores of N completions.

    ``scores`` is the weighted sum over the rewards that gave one (None: no reward did, skip the sample),
    ``components`` each reward's own unweighted scores, ``verdicts`` what the math verifier said if it is configured.
    ``metrics`` are the values that plug-ins logged of scalars, by ``plugin/metric``; ``extras`` the columns of N values
    they logged, by ``plugin/column``.
    """

    scores: list[float | None]
    verdicts: list[Verdict] | None
    components: dict[str, list[float | None]]
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extras: dict[str, list[Any]] = field(default_factory=dict)


class Scorer:
    """Scores batches of completions. Picklable: a copy loads its plug-ins and starts its workers anew.

    Args:
        rewards: at least one, with distinct names; at most one is the math verifier.
        marker, timeout, num_workers: see ``Verifier``.
        gold_column: the dataset column the math verifier compares with.

    Raises:
        ValueError: the rewards are empty or clash.
        RewardPluginError: a plug-in cannot be loaded.
    """

    def __init__(
        self,
        rewards: Sequence[RewardSpec],
        marker: str = "boxed",
        timeout: float = 1.0,
        num_workers: int = 1,
        gold_column: str = "answer",
    ) -> None:
        names = [reward.name for reward in rewards]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"reward names must be distinct and at least one; got {names}")
        if sum(reward.spec == MATH for reward in rewards) > 1:
            raise ValueError(f"the built-in reward {MATH!r} is configured more than once")
        if any(reward.spec == MATH and reward.args for reward in rewards):
            raise ValueError(f"the built-in reward {MATH!r} takes no args; the verifier is set up beside it")
        self._arguments = (tuple(rewards), marker, timeout, num_workers, gold_column)
        self.rewards = tuple(rewards)
        self.gold_column = gold_column
        self.verifier = Verifier(timeout, num_workers, marker)
        self._plugins = {
            reward.name: Plugin(load_reward(reward.spec), reward.name, reward.args)
            for reward in rewards
            if reward.spec != MATH
        }

    def __reduce__(self) -> tuple[type["Scorer"], tuple[Any, ...]]:
        return Scorer, self._arguments

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]],
        state: TrainerState | None = None,
    ) -> ScoreReport:
        """Score a batch.

        Args:
            prompts, completions: N each. The completions of one prompt stand together.
            columns: N values each. Rewards that count tokens look for ``completion_ids``; the math verifier reads the
                problem in ``question`` or ``problem``, else in the prompt.
            state: how far the run is; at its start by default.

        Raises:
            ValueError: prompts, completions and columns differ in length, or the gold column is missing.
            RewardPluginError: a plug-in failed.
        """
        self._check_batch(prompts, completions, columns)
        verdicts = None
        if any(reward.spec == MATH for reward in self.rewards):
            # First, so that plug-ins can see what is right.
            questions = questions_of(prompts, columns)
            verdicts = self.verifier.score(completions, columns[self.gold_column], questions)
        batch = Batch(prompts, completions, columns, verdicts, state or TrainerState(), self.gold_column)
        components: dict[str, list[float | None]] = {}
        metrics: dict[str, list[float]] = {}
        extras: dict[str, list[Any]] = {}
        for reward in self.rewards:
            if verdicts is not None and reward.spec == MATH:
                components[reward.name] = [verdict.score for verdict in verdicts]
                continue
            log = RewardLog(len(batch))
            components[reward.name] = self._plugins[reward.name].score(batch, log)
            metrics |= {f"{reward.name}/{name}": values for name, values in log.metrics.items()}
            extras |= {f"{reward.name}/{name}": values for name, values in log.extras.items()}
        weights = [reward.weight for reward in self.rewards]
        scores = [_weighted_sum(weights, sample) for sample in zip(*components.values(), strict=True)]
        return ScoreReport(scores, verdicts, components, metrics, extras)

    def close(self) -> None:
        """Kill the verifier's worker processes."""
        self.verifier.close()

    def _check_batch(
        self, prompts: Sequence[Any], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> None:
        lengths = {"prompts": len(prompts), **{name: len(values) for name, values in columns.items()}}
        wrong = {name: length for name, length in lengths.items() if length != len(completions)}
        if wrong:
            raise ValueError(f"{len(completions)} completions, but {wrong}")
        if self.gold_column not in columns and any(reward.spec == MATH for reward in self.rewards):
            raise ValueError(
                f"the math reward needs the column {self.gold_column!r}; the data has {', '.join(sorted(columns))}"
            )


def _weighted_sum(weights: Sequence[float], scores: Sequence[float | None]) -> float | None:
    given = [weight * score for weight, score in zip(weights, scores, strict=True) if score is not None]
    return sum(given) if given else None
