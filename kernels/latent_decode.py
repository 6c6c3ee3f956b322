"""Latent attention (MLA) decode in absorbed form over a paged cache, in PyTorch: what a CPU runs.

The function of `deltarl.kernels.gpu.latent_attention`, where its equation stands.
"""

import torch
from torch import Tensor

# Rows that are worked on together: their latents, gathered from the pages, stay in the processor's cache.
ROWS = 16


def latent_attention_decode(
    q: Tensor, pages: Tensor, table: Tensor, position: Tensor, rank: int, scale: float
) -> Tensor:
    """Attention of one new token per row over that row's cached latents; no gradient.

    Args:
        q: `[B, H, R + rope]` absorbed query: `R = rank` channels against the latent, the rest against the shared key.
        pages: `[P, page_size, R + rope]` in q's dtype.
        table: `[B, n]` int, pages of each row.
        position: `[B]` int64, index of the new token: a row sees its tokens up to that.

    Returns:
        `[B, H, R]`.
    """
    size, width = pages.shape[1:]
    out = q.new_empty(len(q), q.shape[1], rank)
    # Rows of like length together, so that few read pages for the sake of the longest.
    order = position.argsort(descending=True)
    longest = (position[order[::ROWS]] // size + 1).tolist()
    for rows, count in zip(order.split(ROWS), longest, strict=True):
        some = pages.index_select(0, table[rows, :count].flatten()).view(len(rows), count * size, width)
        scores = torch.bmm(some, q[rows].transpose(1, 2)).mul_(scale)
        beyond = torch.arange(count * size, device=q.device) > position[rows, None]
        weight = scores.masked_fill_(beyond.unsqueeze(-1), float("-inf")).transpose(1, 2).softmax(-1)
        out[rows] = torch.bmm(weight, some[..., :rank])
    return out
