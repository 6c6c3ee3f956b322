"""Scored answers, packed for the learner."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from deltarl.model.routing import UNKNOWN
from deltarl.rollout.outputs import RoutedExperts


@dataclass(frozen=True)
class TrainSample:
    """One answer with its advantages: all the learner needs to know of it.

    Attributes:
        logprobs: of the completion's tokens, as recorded when they were sampled.
        advantages: of each of these tokens; all the same unless a critic says otherwise.
        old_logprobs: under the weights this iteration starts with; None takes the sampler's for them.
        values, returns: of each token, what the critic said before this iteration and what it should have said.
        routed_experts: that the tokens went to when they were sampled, and are to go to; None lets the routers decide.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    advantages: list[float]
    old_logprobs: list[float] | None = None
    values: list[float] | None = None
    returns: list[float] | None = None
    routed_experts: RoutedExperts | None = None

    @classmethod
    def whole(
        cls,
        prompt_ids: list[int],
        completion_ids: list[int],
        logprobs: list[float],
        advantage: float,
        routed_experts: RoutedExperts | None = None,
    ) -> "TrainSample":
        """An answer whose tokens share one advantage."""
        advantages = [advantage] * len(completion_ids)
        return cls(prompt_ids, completion_ids, logprobs, advantages, routed_experts=routed_experts)

    @classmethod
    def solution(cls, prompt_ids: list[int], completion_ids: list[int]) -> "TrainSample":
        """A worked solution to be imitated, which no policy sampled."""
        return cls.whole(prompt_ids, completion_ids, [0.0] * len(completion_ids), 0.0)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class PackedBatch:
    """Sequences end to end, and the completion tokens within them.

    Attributes:
        input_ids: `[T]`.  cu_seqlens: `[N+1]`.  lengths: `[N]` completion tokens of each.
        predictor: `[n]` position whose logits predict each completion token (the one before it).
        target: `[n]` the completion tokens.
        sampler_logprobs, old_logprobs, advantages: `[n]` fp32, see `TrainSample`.
        values, returns: `[n]` fp32, if there is a critic.
        routed_experts: `[T, layers, k]` int16, `UNKNOWN` where the routers are to decide; None if they always are.
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    lengths: Tensor
    predictor: Tensor
    target: Tensor
    sampler_logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    values: Tensor | None = None
    returns: Tensor | None = None
    routed_experts: Tensor | None = None

    @classmethod
    def pack(cls, samples: Sequence[TrainSample], device: torch.device) -> "PackedBatch":
        """No samples give one token that no completion follows: a pass through the model that computes nothing."""
        ids: list[int] = []
        bounds, predictor, target = [0], list[int](), list[int]()
        for s in samples:
            first = len(ids) + len(s.prompt_ids)
            predictor += range(first - 1, first - 1 + len(s.completion_ids))
            ids += s.prompt_ids + s.completion_ids
            bounds.append(len(ids))
            target += s.completion_ids
        if not ids:
            ids, bounds = [0], [0, 1]

        def indices(parts: list[int]) -> Tensor:
            return torch.tensor(parts, dtype=torch.int64, device=device)

        def per_token(parts: Iterable[list[float]]) -> Tensor:
            return torch.tensor([x for part in parts for x in part], dtype=torch.float32, device=device)

        values = [s.values for s in samples if s.values is not None]
        returns = [s.returns for s in samples if s.returns is not None]
        return cls(
            input_ids=indices(ids),
            cu_seqlens=indices(bounds),
            lengths=indices([len(s.completion_ids) for s in samples]),
            predictor=indices(predictor),
            target=indices(target),
            sampler_logprobs=per_token(s.logprobs for s in samples),
            old_logprobs=per_token(s.logprobs if s.old_logprobs is None else s.old_logprobs for s in samples),
            advantages=per_token(s.advantages for s in samples),
            values=per_token(values) if len(values) == len(samples) else None,
            returns=per_token(returns) if len(returns) == len(samples) else None,
            routed_experts=_packed_experts(samples, device),
        )


def _packed_experts(samples: Sequence[TrainSample], device: torch.device) -> Tensor | None:
    known = [s.routed_experts for s in samples if s.routed_experts is not None]
    if not known:
        return None
    packed = np.full((sum(map(len, samples)), *known[0].prompt.shape[1:]), UNKNOWN, np.int16)
    end = 0
    for s in samples:
        begin, end = end, end + len(s)
        if s.routed_experts is not None:
            packed[begin : end - 1] = np.concatenate(s.routed_experts)  # nothing follows the last token
    return torch.from_numpy(packed).to(device)


@dataclass(frozen=True)
class Minibatch:
    """What one rank contributes to one optimizer step.

    Attributes:
        samples: this rank's share.
        global_tokens, global_answers: completion tokens and answers of all ranks' shares together, for the normaliser
            of the loss.
        solutions: this rank's share of the worked solutions to imitate.
        global_solution_tokens: completion tokens of all ranks' solutions together.
    """

    samples: list[TrainSample]
    global_tokens: int
    global_answers: int
    solutions: list[TrainSample] = field(default_factory=list)
    global_solution_tokens: int = 0


def split_batch(
    samples: Sequence[TrainSample], num_ranks: int, num_minibatches: int, solutions: Sequence[TrainSample] = ()
) -> list[list[Minibatch]]:
    """Deals a batch out so that the ranks together work on the minibatches a single rank would: `[rank][minibatch]`."""
    parts = list(zip(_cut(samples, num_minibatches), _cut(solutions, num_minibatches), strict=True))
    return [
        [
            Minibatch(
                list(part[rank::num_ranks]), _tokens(part), len(part), list(shown[rank::num_ranks]), _tokens(shown)
            )
            for part, shown in parts
        ]
        for rank in range(num_ranks)
    ]


def _cut(samples: Sequence[TrainSample], count: int) -> list[Sequence[TrainSample]]:
    bounds = [len(samples) * i // count for i in range(count + 1)]
    return [samples[a:b] for a, b in pairwise(bounds)]


def _tokens(samples: Sequence[TrainSample]) -> int:
    return sum(len(s.completion_ids) for s in samples)


def micro_batches(samples: Sequence[TrainSample], max_tokens: int) -> list[list[TrainSample]]:
    """Cuts the samples, in order, into runs of at most `max_tokens` tokens (a longer sample is a run of its own).

    A sample is never cut in two: the losses of whole answers need all their tokens at once.
    """
    runs: list[list[TrainSample]] = []
    tokens = 0
    for s in samples:
        if not runs or tokens + len(s) > max_tokens:
            runs.append([])
            tokens = 0
        runs[-1].append(s)
        tokens += len(s)
    return runs
