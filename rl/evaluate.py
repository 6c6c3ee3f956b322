"""Accuracy on held-out problems."""

import math
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from deltarl.reward.batch import TrainerState
from deltarl.reward.verdict import VerdictKind
from deltarl.rl.config import EvalConfig
from deltarl.rl.data import EncodedPrompt
from deltarl.rl.episode_stats import truncated_fraction, verdict_fraction
from deltarl.rl.episodes import Episodes, sample, score
from deltarl.rl.stages import RewardStage, Sampler
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.rng import derive_seed

EVAL_STREAM = -1  # keeps evaluation's random numbers apart from those of training steps, which are positive


def evaluate(
    prompts: Sequence[EncodedPrompt],
    config: EvalConfig,
    *,
    max_tokens: int,
    stop_token_ids: tuple[int, ...],
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    sampler: Sampler,
    scorer: RewardStage,
    state: TrainerState,
) -> Episodes:
    """Samples and scores `config.num_samples` answers to each prompt, with the same random numbers every time."""
    params = [
        SamplingParams(
            n=config.num_samples,
            temperature=config.temperature,
            max_tokens=max_tokens,
            stop_token_ids=stop_token_ids,
            seed=derive_seed(seed, EVAL_STREAM, i),
        )
        for i in range(len(prompts))
    ]
    return score(prompts, sample(prompts, params, sampler), tokenizer, scorer, state)


def eval_metrics(episodes: Episodes) -> dict[str, float]:
    """pass@1, pass@k for k the number of samples, and what may explain them."""
    right = episodes.right
    samples = right.shape[1]
    metrics = {
        "eval/len_mean": float(episodes.lengths.mean()),
        "eval/truncated_frac": truncated_fraction(episodes),
        "eval/no_answer_frac": verdict_fraction(episodes, VerdictKind.NO_ANSWER),
    }
    return metrics | {f"eval/pass@{k}": pass_at_k(right, k) for k in (1, samples)}


def pass_at_k(right: np.ndarray, k: int) -> float:
    """Chance that one of k answers is right, from n ≥ k answers to each problem, without bias.

    `1 − C(n − c, k) / C(n, k)` for c right ones, averaged over problems (Codex, arXiv 2107.03374, Eq. 1).

    Args:
        right: `[P, n]` bool.
    """
    n = right.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs between 1 and n = {n} samples per problem")
    return float(np.mean([1 - math.comb(n - int(c), k) / math.comb(n, k) for c in right.sum(1)]))
