"""Accuracy on held-out problems, of several sets at once."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from deltarl.reward.batch import TrainerState
from deltarl.reward.verdict import VerdictKind
from deltarl.reward.verifier import Verifier
from deltarl.rl.config import RunConfig
from deltarl.rl.data import EncodedPrompt
from deltarl.rl.episode_stats import truncated_fraction, verdict_fraction
from deltarl.rl.episodes import Episodes, sample, score
from deltarl.rl.eval_stats import majority_right, pass_at_k, with_interval
from deltarl.rl.stages import RewardStage, Sampler
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.rng import derive_seed

EVAL_STREAM = -1  # keeps evaluation's random numbers apart from those of training steps, which are positive


def evaluate(
    sets: Mapping[str, Sequence[EncodedPrompt]],
    config: RunConfig,
    *,
    tokenizer: PreTrainedTokenizerBase,
    sampler: Sampler,
    scorer: RewardStage,
    state: TrainerState,
) -> dict[str, Episodes]:
    """Samples `eval.num_samples` answers to each prompt, all sets in one go, with the same random numbers every time;
    and scores them."""
    prompts = [p for found in sets.values() for p in found]
    params = [
        SamplingParams(
            n=config.eval.num_samples,
            temperature=config.eval.temperature,
            max_tokens=config.rollout.max_tokens,
            stop_token_ids=(int(tokenizer.eos_token_id),),
            seed=derive_seed(config.seed, EVAL_STREAM, *_stream(name), i),
        )
        for name, found in sets.items()
        for i in range(len(found))
    ]
    groups = iter(sample(prompts, params, sampler))
    # Scored set by set: a batch of the reward stage has the same columns throughout.
    return {name: score(found, [next(groups) for _ in found], tokenizer, scorer, state) for name, found in sets.items()}


def eval_metrics(sets: Mapping[str, Episodes], timeout: float) -> dict[str, float]:
    """What an evaluation logs; those of a set other than the main one as `eval/{set}/...`.

    Args:
        timeout: seconds the comparison of two answers may take, for maj@k.
    """
    return {
        f"eval/{name}/{metric}" if name else f"eval/{metric}": value
        for name, metrics in metrics_by_set(sets, timeout).items()
        for metric, value in metrics.items()
    }


def metrics_by_set(sets: Mapping[str, Episodes], timeout: float) -> dict[str, dict[str, float]]:
    """The same without `eval/`, for each set."""
    with Verifier(timeout) as verifier:
        return {name: _set_metrics(episodes, verifier) for name, episodes in sets.items()}


def _set_metrics(episodes: Episodes, verifier: Verifier) -> dict[str, float]:
    """pass@k for the powers of 2 up to the number of samples and for that number, where pass@1 is their mean (avg@k);
    maj@k for that number, where the verifier is configured; and what may explain them."""
    right = episodes.right
    samples = right.shape[1]
    sizes = sorted({2**i for i in range(samples.bit_length())} | {samples})
    values = {f"pass@{k}": pass_at_k(right, k) for k in sizes}
    if episodes.report.verdicts is not None:
        extracted = [v.extracted for v in episodes.report.verdicts]
        answers = [extracted[i : i + samples] for i in range(0, len(extracted), samples)]

        def same(a: str, b: str) -> bool:
            return verifier.score([f"\\boxed{{{a}}}"], [b])[0].kind is VerdictKind.RIGHT

        majorities = [majority_right(r, a, same) for r, a in zip(right.tolist(), answers, strict=True)]
        values[f"maj@{samples}"] = np.array(majorities)
    return with_interval(values) | {
        "len_mean": float(episodes.lengths.mean()),
        "truncated_frac": truncated_fraction(episodes),
        "no_answer_frac": verdict_fraction(episodes, VerdictKind.NO_ANSWER),
    }


def _stream(name: str) -> tuple[int, ...]:
    """Keeps the random numbers of a set apart from those of others, whatever other sets there are."""
    return (zlib.crc32(name.encode()),) if name else ()
