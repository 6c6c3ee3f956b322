r"""Shaping rewards: small terms beside the verifier's, usable by name, with their parameters under ``args``.

- {name: overlong, function: soft_overlong, args: {max_tokens: 1024, cache: 256}}
"""

from collections.abc import Sequence
from itertools import groupby

from deltarl.reward.batch import TrainerState
from deltarl.reward.verdict import Verdict


def format_tags(completions: Sequence[str], tags: Sequence[str] = (r"\boxed{",)) -> list[float]:
    r"""1 where each of ``tags`` stands exactly once and in this order, else 0: the format reward of DeepSeek-R1
    (arXiv 2501.12948, section 2.2.2). For thinking: ``tags: ["<think>", "</think>", "\\boxed{"]``.
    """
    if isinstance(tags, str) or not all(tags):
        raise ValueError(f"tags must be a list of texts that are not empty, got {tags!r}")
    return [float(_once_in_order(completion, tags)) for completion in completions]


def kimi_length(
    prompts: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    verdicts: Sequence[Verdict],
    trainer_state: TrainerState,
    warmup_steps: int = 0,
) -> list[float | None]:
    """Length reward of Kimi k1.5 (arXiv 2501.12599, section 2.3.3), among the answers to one prompt.

    ``0.5 - (len - min_len) / (max_len - min_len)`` for a right answer, at most 0 for a wrong one, 0 for all if they are
    equally long. The paper starts without it: its weight grows from 0 at the first step to 1 after ``warmup_steps``.
    None where the verifier cannot judge.
    """
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must not be negative, got {warmup_steps}")
    weight = min(1.0, trainer_state.global_step / warmup_steps) if warmup_steps else 1.0
    rewards: list[float | None] = []
    start = 0
    for _, group in groupby(prompts):
        stop = start + len(list(group))
        lengths = [len(ids) for ids in completion_ids[start:stop]]
        shortest, spread = min(lengths), max(lengths) - min(lengths)
        for length, verdict in zip(lengths, verdicts[start:stop], strict=True):
            reward = 0.5 - (length - shortest) / spread if spread else 0.0
            known = verdict.score is not None
            rewards.append(weight * (reward if verdict.score else min(0.0, reward)) if known else None)
        start = stop
    return rewards


def soft_overlong(completion_ids: Sequence[Sequence[int]], max_tokens: int, cache: int) -> list[float]:
    """Soft overlong punishment of DAPO (arXiv 2503.14476, Eq. 13).

    0 up to ``max_tokens - cache`` tokens, falling linearly to -1 at ``max_tokens``, and -1 beyond.
    """
    if not 0 < cache <= max_tokens:
        raise ValueError(f"cache must be from 1 to max_tokens = {max_tokens}, got {cache}")
    return [-min(1.0, max(0, len(ids) - (max_tokens - cache)) / cache) for ids in completion_ids]


def repetition(completion_ids: Sequence[Sequence[int]], ngram_size: int = 4, max_penalty: float = -1.0) -> list[float]:
    """``max_penalty`` times the share of a completion's n-grams of tokens that occurred in it before, after
    "Demystifying Long Chain-of-Thought Reasoning" (arXiv 2502.03373, appendix C.2).
    """
    if ngram_size < 1 or max_penalty > 0:
        raise ValueError(f"need ngram_size >= 1 and max_penalty <= 0, got {ngram_size} and {max_penalty}")
    return [max_penalty * _repeated_share(ids, ngram_size) for ids in completion_ids]


def _once_in_order(text: str, tags: Sequence[str]) -> bool:
    places = [text.find(tag) for tag in tags]
    return all(text.count(tag) == 1 for tag in tags) and places == sorted(places)


def _repeated_share(ids: Sequence[int], size: int) -> float:
    ngrams = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
