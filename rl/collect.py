"""The answers of a step: sampled, scored, and chosen from."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from deltarl.reward.batch import TrainerState
from deltarl.rl.collected import Collected
from deltarl.rl.config import RunConfig
from deltarl.rl.data import Draw, EncodedPrompt
from deltarl.rl.episodes import Episodes, rollout_params, sample, score
from deltarl.rl.stages import RewardStage, Sampler
from deltarl.rl.stopwatch import Spans, Stopwatch
from deltarl.rollout.rng import derive_seed

REFILL_STREAM = -2  # keeps the order of refills apart from other random numbers, as evaluate.EVAL_STREAM does


class Collector:
    """Samples and scores. What it does in a step depends on the configuration, the weights, the step and its `Draw`,
    which learns of every batch before the next is drawn."""

    def __init__(
        self,
        config: RunConfig,
        problems: Sequence[EncodedPrompt],
        tokenizer: PreTrainedTokenizerBase,
        sampler: Sampler,
        scorer: RewardStage,
        draw: Draw,
        spans: Spans,
    ):
        """
        Args:
            draw: of the problems, one batch a step.
            spans: puts its phases on the run's timeline.
        """
        self._config, self._problems, self._tokenizer = config, problems, tokenizer
        self._sampler, self._scorer, self._draw = sampler, scorer, draw
        self._spans, self._clock = spans, Stopwatch(spans)  # of the batch under way

    def collect(self, step: int) -> Collected:
        """The answers of `step`.

        Dynamic sampling (DAPO, arXiv 2503.14476, Eq. 11) drops the groups whose answers all have the same score, and
        samples as many other problems in their place, `rollout.max_refills` times at most.
        """
        rollout, self._clock = self._config.rollout, Stopwatch(self._spans)
        drawn: list[int] = []
        rounds, sampled = list[Episodes](), 0
        most = 1 + rollout.max_refills if rollout.dynamic_sampling else 1
        while sampled < most and (missing := rollout.prompts_per_step - (_informative(rounds) if sampled else 0)):
            found = self._round(step, sampled, missing, drawn)
            rounds += [] if found is None else [found]
            sampled += 1
        if not rounds:
            raise ValueError(f"all prompts of step {step} were set aside as they kill workers: see faults.jsonl")
        prompts, metrics = list(range(len(drawn))), dict[str, float]()
        if rollout.dynamic_sampling:
            prompts, metrics = self._chosen(rounds)
            metrics["group/refills"] = sampled - 1
        episodes = Episodes.joined(rounds)
        self._draw.record(drawn, episodes.right.mean(1).tolist())
        return Collected(episodes, prompts, drawn, metrics, self._clock.seconds)

    def _chosen(self, rounds: Sequence[Episodes]) -> tuple[list[int], dict[str, float]]:
        """The prompts of dynamic sampling's rounds to learn from, and metrics of the choice."""
        rollout, learner = self._config.rollout, self._config.learner
        informative = np.concatenate([r.informative for r in rounds])
        kept, others = np.flatnonzero(informative).tolist(), np.flatnonzero(~informative).tolist()
        # Every rank and minibatch needs an answer. Groups without signal make up the number: their advantage is zero.
        need = -(-learner.num_ranks * learner.num_minibatches // rollout.num_generations)
        return kept + others[: max(0, need - len(kept))], {"group/kept_frac": len(kept) / len(informative)}

    def _round(self, step: int, refill: int, count: int, drawn: list[int]) -> Episodes | None:
        """Answers to the first `count` problems of the step, or of the step's refill of that number; notes in `drawn`
        which they are, but for those set aside; None if all of them are."""
        rollout, seed = self._config.rollout, self._config.seed
        # A refill draws from an order of its own, so that the run's passes over the data stay what they are.
        order = derive_seed(seed, REFILL_STREAM, refill) if refill else seed
        indices = self._draw.batch(step - 1, order)[:count]
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
        with self._clock("rollout"):
            groups = sample(prompts, params, self._sampler)
        if all(group is None for group in groups):
            return None
        drawn += [i for i, group in zip(indices, groups, strict=True) if group is not None]
        with self._clock("verify"):
            state = TrainerState(step - 1, self._config.steps)
            return score(prompts, groups, self._tokenizer, self._scorer, state)


def _informative(rounds: Sequence[Episodes]) -> int:
    """Groups that teach something."""
    return sum(int(r.informative.sum()) for r in rounds)
