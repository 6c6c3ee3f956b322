"""From logits to a token and its log-probability, for a whole batch at once."""

import torch
from torch import Tensor


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draws one token per row by inverting the cumulative distribution.

    Args:
        logits: `[B, vocab]` fp32.  temperature, top_k, top_p: `[B]`, as in `SamplingParams`.
        uniform: `[B]` fp64 in [0, 1).

    Returns:
        Token `[B]` int64, and its log-probability `[B]` fp32 under `softmax(logits / temperature)` over the whole
        vocabulary (temperature 1 for greedy rows): what the learner computes for it.
    """
    greedy = temperature == 0
    logprobs = torch.log_softmax(logits / temperature.masked_fill(greedy, 1.0).unsqueeze(-1), -1)
    probs = logprobs.double().exp()
    if (top_k > 0).any() or (top_p < 1).any():
        probs = _truncate(probs, top_k, top_p)
    cdf = probs.cumsum(-1)
    token = torch.searchsorted(cdf, (uniform * cdf[:, -1]).unsqueeze(-1), right=True).squeeze(-1)
    # `right` skips tokens of zero probability; rounding at the very end of the table must not run past it.
    token = torch.where(greedy, logits.argmax(-1), token.clamp_max(logits.shape[-1] - 1))
    return token, logprobs.gather(-1, token.unsqueeze(-1)).squeeze(-1)


def _truncate(probs: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Zeroes all but the top-k tokens, then all but the smallest set that holds top-p of what is left."""
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(probs.shape[-1], device=probs.device)
    keep_k = (top_k == 0).unsqueeze(-1) | (rank < top_k.unsqueeze(-1))
    ranked = ranked * keep_k
    total = ranked.sum(-1, keepdim=True)
    before = ranked.cumsum(-1) - ranked
    ranked = ranked * ((before < top_p.unsqueeze(-1) * total) | (top_p >= 1).unsqueeze(-1))
    return torch.zeros_like(probs).scatter_(-1, order, ranked)
