"""Scored answers, packed for the learner."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class TrainSample:
    """One answer with its advantage: all the learner needs to know of it."""

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    advantage: float

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class PackedBatch:
    """Sequences end to end, and the completion tokens within them.

    Attributes:
        input_ids: `[T]`.  cu_seqlens: `[N+1]`.
        predictor: `[n]` position whose logits predict each completion token (the one before it).
        target: `[n]` the completion tokens.  old_logprobs, advantages: `[n]` fp32.
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    predictor: Tensor
    target: Tensor
    old_logprobs: Tensor
    advantages: Tensor

    @classmethod
    def pack(cls, samples: Sequence[TrainSample], device: torch.device) -> "PackedBatch":
        ids: list[int] = []
        bounds, predictor, target = [0], list[int](), list[int]()
        logprobs, advantages = list[float](), list[float]()
        for s in samples:
            first = len(ids) + len(s.prompt_ids)
            predictor += range(first - 1, first - 1 + len(s.completion_ids))
            ids += s.prompt_ids + s.completion_ids
            bounds.append(len(ids))
            target += s.completion_ids
            logprobs += s.logprobs
            advantages += [s.advantage] * len(s.completion_ids)
        return cls(
            input_ids=torch.tensor(ids, device=device),
            cu_seqlens=torch.tensor(bounds, device=device),
            predictor=torch.tensor(predictor, device=device),
            target=torch.tensor(target, device=device),
            old_logprobs=torch.tensor(logprobs, dtype=torch.float32, device=device),
            advantages=torch.tensor(advantages, dtype=torch.float32, device=device),
        )


@dataclass(frozen=True)
class Minibatch:
    """What one rank contributes to one optimizer step.

    Attributes:
        samples: this rank's share.
        global_tokens: completion tokens of all ranks' shares together, the normaliser of the loss.
    """

    samples: list[TrainSample]
    global_tokens: int


def split_batch(samples: Sequence[TrainSample], num_ranks: int, num_minibatches: int) -> list[list[Minibatch]]:
    """Deals a batch out so that the ranks together work on the minibatches a single rank would: `[rank][minibatch]`."""
    bounds = [len(samples) * i // num_minibatches for i in range(num_minibatches + 1)]
    parts = [samples[a:b] for a, b in pairwise(bounds)]
    tokens = [sum(len(s.completion_ids) for s in part) for part in parts]
    return [
        [Minibatch(list(part[rank::num_ranks]), n) for part, n in zip(parts, tokens, strict=True)]
        for rank in range(num_ranks)
    ]


def micro_batches(samples: Sequence[TrainSample], max_tokens: int) -> list[list[TrainSample]]:
    """Cuts the samples, in order, into runs of at most `max_tokens` tokens (a longer sample is a run of its own)."""
    runs: list[list[TrainSample]] = []
    tokens = 0
    for s in samples:
        if not runs or tokens + len(s) > max_tokens:
            runs.append([])
            tokens = 0
        runs[-1].append(s)
        tokens += len(s)
    return runs
