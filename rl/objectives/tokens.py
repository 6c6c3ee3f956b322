"""The completion tokens of a micro-batch, and sums over the answers they belong to."""

from dataclasses import dataclass

import torch
from torch import Tensor


def answer_sums(x: Tensor, lengths: Tensor) -> Tensor:
    """Sums `[N]` of `x` `[n]` over answers of `lengths` `[N]`, in fp64, the same whatever they are packed with."""
    if not len(lengths):
        return x.double()  # of no answers there is nothing to add, and segment_reduce takes no empty lengths
    return torch.segment_reduce(x.double(), "sum", lengths=lengths)


@dataclass(frozen=True)
class Tokens:
    """What a loss is made of: n tokens of N whole answers, one after the other.

    Three policies are kept apart: the one that sampled, the one this iteration started with, and the current one.

    Attributes:
        logprobs: `[n]` under the current policy, with gradient.
        old_logprobs: `[n]` under the policy the iteration started with.
        sampler_logprobs: `[n]` as recorded when sampling.
        advantages: `[n]`; all tokens of an answer have the same unless a critic says otherwise.
        lengths: `[N]` int64, tokens of each answer.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    sampler_logprobs: Tensor
    advantages: Tensor
    lengths: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """`[n]` log(π / π_old), with gradient."""
        return self.logprobs - self.old_logprobs

    def sums(self, x: Tensor) -> Tensor:
        """`[n]` to `[N]`: see `answer_sums`."""
        return answer_sums(x, self.lengths)

    def spread(self, per_answer: Tensor) -> Tensor:
        """`[N]` to `[n]`: every token gets its answer's value, in the dtype of the log-probabilities."""
        # Repeated in fp64, because the backward pass adds up in an order that a GPU does not promise.
        spread = per_answer.repeat_interleave(self.lengths, output_size=len(self.logprobs))
        return spread.to(self.logprobs.dtype)

    def means(self, x: Tensor) -> Tensor:
        """`[n]` to `[N]`: means over each answer, in fp64; 0 for an empty one."""
        return self.sums(x) / self.lengths.clamp(min=1)


@dataclass(frozen=True)
class Surrogate:
    """What a surrogate loss returns, `[n]` each.

    Attributes:
        loss: to be minimised, with gradient. A loss of whole answers stands at each of their tokens.
        ratio: of new to old policy as the loss takes it, without gradient.
        clipped_low, clipped_high: bool, tokens that the clip range keeps from teaching, or from teaching fully.
    """

    loss: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
