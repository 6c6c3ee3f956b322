"""From logits to a token and its log-probability, for a whole batch at once.

The order is vLLM's (`vllm/v1/sample/sampler.py`): min-tokens mask, logit bias, penalties (see `sampling_rows`), then
temperature, min-p, top-k, top-p, and the draw. Each truncation works on what the one before it left.

A row's token depends on that row alone, to the bit. Probabilities are rounded to multiples of 2^-52 before anything is
added up: sums of those are exact in fp64, so neither the order in which a device adds, nor a truncation that only other
rows asked for, can change a row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from deltarl.kernels.logprobs import log_softmax

_ONE = 2.0**52  # weight of probability 1: a whole vocabulary adds up to about this, and fp64 has all integers to 2^53


class Draw(NamedTuple):
    """What was drawn, all `[B]`.

    Attributes:
        token: int64.
        logprob: fp32, under `softmax(logits / temperature)` over the whole vocabulary (temperature 1 for greedy rows),
            before bias, penalties and truncation: what the learner computes for the token.
        sampling_logprob: fp32, under the distribution it was drawn from; 0 for greedy rows.
    """

    token: Tensor
    logprob: Tensor
    sampling_logprob: Tensor


class TopKTopP(NamedTuple):
    """The rows that have top-k or top-p.

    Attributes:
        rows: `[R]` int64, which rows of the batch.
        top_k: `[R]` int64, as in `SamplingParams`.
        top_p: `[R]` fp64.
        candidates: how many tokens have to be ranked: the largest top_k of these rows, or the size of the vocabulary
            where one has none. On the host, because it is the shape of a tensor.
    """

    rows: Tensor
    top_k: Tensor
    top_p: Tensor
    candidates: int


class TopTokens(NamedTuple):
    """The most likely tokens of every row, likeliest first: `ids` int64 and `logprobs` fp32, both `[B, n]`."""

    ids: Tensor
    logprobs: Tensor


def sample(
    logits: Tensor,
    temperature: Tensor,
    uniform: Tensor,
    *,
    adjusted: Tensor | None = None,
    min_p: Tensor | None = None,
    top: TopKTopP | None = None,
    greedy_rows: bool = True,
) -> Draw:
    """Draws one token per row by inverting the cumulative distribution.

    What no row asks for is left out by the caller, who knows it without asking the device.

    Args:
        logits: `[B, vocab]` fp32, as the model gave them; some may be -inf, not all of a row.
        temperature: `[B]` fp32; 0 takes the likeliest token, of equal ones the first.
        uniform: `[B]` fp64 in [0, 1).
        adjusted: `[B, vocab]` fp32, the logits after bias and penalties, to draw from in place of `logits`.
        min_p: `[B]` fp64, as in `SamplingParams`.
        top: the rows with top-k or top-p.
        greedy_rows: False if no temperature is 0.

    Returns:
        The draw. A row with NaN gets some token of the vocabulary with a log-probability of NaN; the others are as
        they would be without it.
    """
    greedy = temperature == 0
    scale = temperature.masked_fill(greedy, 1.0).unsqueeze(-1)
    raw = log_softmax(logits / scale)
    logprobs = raw if adjusted is None else log_softmax(adjusted / scale)
    weight = logprobs.double().exp_().mul_(_ONE).floor_()
    left = weight
    if min_p is not None:
        left = left * (left >= min_p.unsqueeze(-1) * left.amax(-1, keepdim=True))
    if top is not None:
        left = _keep_top(left, logprobs, top)
    cdf = left.cumsum(-1)
    total = cdf[:, -1:]
    # The first token whose cumulative weight is beyond the target: `right` skips those that have none.
    target = torch.minimum(uniform.unsqueeze(-1) * total, total - 1)
    token = torch.searchsorted(cdf, target, right=True).clamp_max(logits.shape[-1] - 1)
    if greedy_rows:
        best = (logits if adjusted is None else adjusted).argmax(-1, keepdim=True)
        token = torch.where(greedy.unsqueeze(-1), best, token)
    logprob, sampling = raw.gather(-1, token), logprobs.gather(-1, token)
    if left is not weight:
        # A row that lost nothing keeps the number it has where nobody truncates.
        renormalised = (left.gather(-1, token) / total).log().float()
        sampling = torch.where(weight.sum(-1, keepdim=True) == total, sampling, renormalised)
    return Draw(token.squeeze(-1), logprob.squeeze(-1), sampling.squeeze(-1).masked_fill(greedy, 0.0))


def top_tokens(logits: Tensor, temperature: Tensor, n: int) -> TopTokens:
    """The `n` most likely tokens of each row of `[B, vocab]` logits (all, if there are fewer).

    Log-probabilities are as `Draw.logprob`. Of equally likely tokens the first comes first, so that a row's tokens do
    not depend on how many another row asked for.
    """
    scale = temperature.masked_fill(temperature == 0, 1.0).unsqueeze(-1)
    logprobs = log_softmax(logits / scale)
    ids = _rank_keys(logprobs).topk(min(n, logits.shape[-1])).indices
    return TopTokens(ids, logprobs.gather(-1, ids))


def _keep_top(weight: Tensor, logprobs: Tensor, top: TopKTopP) -> Tensor:
    """Zeroes all but the top-k tokens, then all but the smallest set that holds top-p of what is left."""
    mine = weight[top.rows]
    order = _rank_keys(logprobs[top.rows]).topk(top.candidates).indices
    top_k, top_p = top.top_k.unsqueeze(-1), top.top_p.unsqueeze(-1)
    rank = torch.arange(top.candidates, device=weight.device)
    ranked = mine.gather(-1, order) * ((top_k <= 0) | (rank < top_k))
    reached = ranked.cumsum(-1)
    kept = ranked * ((reached - ranked < top_p * reached[:, -1:]) | (top_p >= 1))
    return weight.index_copy(0, top.rows, torch.zeros_like(mine).scatter_(-1, order, kept))


def _rank_keys(logprobs: Tensor) -> Tensor:
    """Integers in the order of fp32 `[B, vocab]`, equal ones told apart by their id: the lower id is the larger.

    A topk of these has one answer; of equal floats it may pick any, and others for another k.
    """
    bits = logprobs.contiguous().view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # IEEE floats compare like their bits, but negative ones backwards
    return (ordered.long() << 32) - torch.arange(logprobs.shape[-1], device=logprobs.device)
