"""The answers of a step: sampled, scored, and chosen from."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from deltarl.reward.batch import TrainerState
from deltarl.rl.config import RunConfig
from deltarl.rl.data import Draw, EncodedPrompt
from deltarl.rl.episodes import Episodes, rollout_params, sample, score
from deltarl.rl.stages import RewardStage, Sampler
from deltarl.rollout.rng import derive_seed

REFILL_STREAM = -2  # keeps the order of refills apart from other random numbers, as evaluate.EVAL_STREAM does


@dataclass(frozen=True)
class Collected:
    episodes: Episodes
    """All that was sampled."""
    prompts: Sequence[int]
    """Which of its prompts to learn from."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of that choice."""
    problems: list[int] = field(default_factory=list)
    """Which training problem each prompt is."""


class Collector:
    """Samples and scores. What it does in a step depends on the configuration, the weights, the step and its `Draw`."""

    def __init__(
        self,
        config: RunConfig,
        problems: Sequence[EncodedPrompt],
        tokenizer: PreTrainedTokenizerBase,
        sampler: Sampler,
        scorer: RewardStage,
        draw: Draw,
        timed: Callable[[str], AbstractContextManager[None]],
    ):
        """
        Args:
            draw: of the problems, one batch a step.
            timed: measures the phases `rollout` and `verify`.
        """
        self._config, self._problems, self._tokenizer = config, problems, tokenizer
        self._sampler, self._scorer, self._draw, self._timed = sampler, scorer, draw, timed

    def collect(self, step: int) -> Collected:
        """The answers of `step`.

        Dynamic sampling (DAPO, arXiv 2503.14476, Eq. 11) drops the groups whose answers all have the same score, and
        samples as many other problems in their place, `rollout.max_refills` times at most.
        """
        rollout, learner = self._config.rollout, self._config.learner
        drawn: list[int] = []
        rounds = [self._round(step, 0, rollout.prompts_per_step, drawn)]
        if not rollout.dynamic_sampling:
            return Collected(rounds[0], range(rollout.prompts_per_step), problems=drawn)
        while (missing := rollout.prompts_per_step - _informative(rounds)) and len(rounds) <= rollout.max_refills:
            rounds.append(self._round(step, len(rounds), missing, drawn))
        episodes = Episodes.joined(rounds)
        kept = np.flatnonzero(episodes.informative).tolist()
        metrics = {"group/kept_frac": len(kept) / len(episodes.groups), "group/refills": len(rounds) - 1}
        # Every rank and minibatch needs an answer. Groups without signal make up the number: their advantage is zero.
        others = np.flatnonzero(~episodes.informative).tolist()
        need = -(-learner.num_ranks * learner.num_minibatches // rollout.num_generations)
        return Collected(episodes, kept + others[: max(0, need - len(kept))], metrics, drawn)

    def _round(self, step: int, refill: int, count: int, drawn: list[int]) -> Episodes:
        """Answers to the first `count` problems of the step, or of the step's refill of that number; notes in `drawn`
        which they are."""
        rollout, seed = self._config.rollout, self._config.seed
        # A refill draws from an order of its own, so that the run's passes over the data stay what they are.
        order = derive_seed(seed, REFILL_STREAM, refill) if refill else seed
        indices = self._draw.batch(step - 1, order)[:count]
        drawn += indices
        prompts = [self._problems[i] for i in indices]
        params = [
            rollout_params(
                self._config,
                self._tokenizer,
                rollout.num_generations,
                derive_seed(seed, step, refill * rollout.prompts_per_step + i),
            )
            for i in range(len(prompts))
        ]
        with self._timed("rollout"):
            groups = sample(prompts, params, self._sampler)
        with self._timed("verify"):
            state = TrainerState(step - 1, self._config.steps)
            return score(prompts, groups, self._tokenizer, self._scorer, state)


def _informative(rounds: Sequence[Episodes]) -> int:
    """Groups that teach something."""
    return sum(int(r.informative.sum()) for r in rounds)
