"""Problems sampled and scored: the data of one step, and of one evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from deltarl.reward.batch import TrainerState
from deltarl.reward.rewards import ScoreReport
from deltarl.reward.verdict import VerdictKind
from deltarl.rl.batch import TrainSample
from deltarl.rl.config import RunConfig
from deltarl.rl.data import EncodedPrompt
from deltarl.rl.stages import RewardStage, Sampler, merge_reports
from deltarl.rollout.outputs import RequestOutput
from deltarl.rollout.params import SamplingParams


@dataclass(frozen=True)
class Episodes:
    """P prompts with G answers each; flat lists run through the answers of the first prompt first.

    Attributes:
        groups: the answers of each prompt `[P]`.
        completions: `[P*G]` the answers' text without special tokens.
        report: scores and verdicts of the `P*G` answers.
    """

    prompts: Sequence[EncodedPrompt]
    groups: list[RequestOutput]
    completions: list[str]
    report: ScoreReport

    @property
    def scores(self) -> np.ndarray:
        """`[P, G]`, NaN where an answer has no score."""
        flat = [float("nan") if s is None else s for s in self.report.scores]
        return np.array(flat, dtype=np.float64).reshape(len(self.groups), -1)

    @property
    def right(self) -> np.ndarray:
        """`[P, G]` bool: the verifier's verdict, or where it is not configured a positive score."""
        if self.report.verdicts is None:
            return np.nan_to_num(self.scores) > 0
        flat = [v.kind is VerdictKind.RIGHT for v in self.report.verdicts]
        return np.array(flat).reshape(len(self.groups), -1)

    @property
    def lengths(self) -> np.ndarray:
        """`[P, G]` completion tokens."""
        return np.array([[len(t.token_ids) for t in group.outputs] for group in self.groups])

    @property
    def informative(self) -> np.ndarray:
        """`[P]` bool: the answers have more than one score, so that comparing them teaches something."""
        scores = self.scores
        return np.nan_to_num(scores, nan=-np.inf).max(1) > np.nan_to_num(scores, nan=np.inf).min(1)

    def train_samples(self, advantages: np.ndarray, prompts: Sequence[int] | None = None) -> list[TrainSample]:
        """The answers that have a score, for the learner.

        Args:
            advantages: `[K, G]`.
            prompts: `[K]` the prompts these are of; None is all P.
        """
        known = ~np.isnan(self.scores)
        return [
            TrainSample.whole(self.groups[i].prompt_token_ids, t.token_ids, t.logprobs, float(row[j]), t.routed_experts)
            for i, row in zip(range(len(self.groups)) if prompts is None else prompts, advantages, strict=True)
            for j, t in enumerate(self.groups[i].outputs)
            if known[i, j]
        ]

    @classmethod
    def joined(cls, rounds: Sequence["Episodes"]) -> "Episodes":
        """Several rounds of sampling as one."""
        if len(rounds) == 1:
            return rounds[0]
        return cls(
            prompts=[p for r in rounds for p in r.prompts],
            groups=[g for r in rounds for g in r.groups],
            completions=[c for r in rounds for c in r.completions],
            report=merge_reports([r.report for r in rounds]),
        )


def rollout_params(config: RunConfig, tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> SamplingParams:
    """As training samples; `n` answers."""
    rollout = config.rollout
    return SamplingParams(
        n=n,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        max_tokens=rollout.max_tokens,
        stop_token_ids=(int(tokenizer.eos_token_id),),
        seed=seed,
    )


def sample(
    prompts: Sequence[EncodedPrompt], params: Sequence[SamplingParams], sampler: Sampler
) -> list[RequestOutput | None]:
    """The answers to each prompt; None for one that was set aside, because it kills workers."""
    return list(sampler.generate([p.token_ids for p in prompts], params))


def score(
    prompts: Sequence[EncodedPrompt],
    answers: Sequence[RequestOutput | None],
    tokenizer: PreTrainedTokenizerBase,
    scorer: RewardStage,
    state: TrainerState,
) -> Episodes:
    """Scores every answer against its problem's columns. Prompts without answers are left out of the episodes.

    Raises:
        ValueError: no prompt has any.
    """
    asked = len(prompts)
    prompts = [p for p, group in zip(prompts, answers, strict=True) if group is not None]
    groups = [group for group in answers if group is not None]
    if not groups:
        raise ValueError(f"all {asked} prompts were set aside because they kill workers; faults.jsonl names them")
    completion_ids = [t.token_ids for group in groups for t in group.outputs]
    completions = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    owner = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group.outputs]
    # Sources that are mixed may bring columns of their own.
    names = {name: None for prompt in prompts for name in prompt.example.columns}
    columns: dict[str, list[Any]] = {name: [p.example.columns.get(name) for p in owner] for name in names}
    columns |= {"answer": [p.example.answer for p in owner], "completion_ids": completion_ids}
    report = scorer.score([p.text for p in owner], completions, columns, state)
    return Episodes(prompts, groups, completions, report)
