"""`Σ_d r_i k_j exp(G_i − G_j)`, the products of a chunk's rows with its keys, for any decay.

G is the cumulative log decay within the chunk. `exp(G_i − G_j)` is split into `exp(G_i)·exp(−G_j)`, which makes the sum
a matrix product. That fails once exp(−G) leaves the range of the dtype. Rows for which it would are "far"; their
products are computed from the differences, a row at a time.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def factor_limit(dtype: torch.dtype) -> float:
    """Largest decay, in nats, that `exp(-G)` may undo.

    It leaves room on both sides, so that products and their gradients stay normal numbers. In fp32 60 nats in 16 tokens
    is stronger decay than a softplus gate shows at initialisation (at most 26); what fp64 allows is stronger than any
    gate in use.
    """
    return 300.0 if dtype == torch.float64 else 60.0


def undo_decay(x: Tensor, decay: Tensor, clip: bool = True) -> Tensor:
    """`x exp(-G)` from `decay = exp(G)`. Clipped, it is finite for any G, and wrong in far rows only."""
    return x / (_clipped(decay) if clip else decay)


def redo_decay(x: Tensor, decay: Tensor) -> Tensor:
    """What `undo_decay` made x of, clipped or not."""
    return x * _clipped(decay)


def _clipped(decay: Tensor) -> Tensor:
    return decay.clamp_min(math.exp(-factor_limit(decay.dtype)))


def is_far(cumulative: Tensor) -> Tensor:
    """Which rows `[...]` of G `[..., K]` are far.

    G never increases, so if row i is far then so is every row after it: the test looks at no later row, and neither
    therefore does any rounding: the form is causal to the bit.
    """
    return (cumulative < -factor_limit(cumulative.dtype)).any(-1)


def pair_scores(rows: Tensor, weight: Tensor, k: Tensor) -> Tensor:
    """`Σ_d rows_r k_j weight_j`, `[n, R, J]`; exact for any decay.

    Args:
        rows: `[n, R, K]`, one token's q or k and the like.  weight: `[n, J, K]`, `exp(G_i − G_j)`.  k: `[n, J, K]`.
    """
    return torch.bmm(rows, (weight * k).transpose(1, 2))


@dataclass
class FarRows:
    """The far rows of some chunks, M of them (a chunk of a head), and what their products are made of.

    Attributes:
        chunks: `[n]` the chunks that have any.
        rows: row within the chunk, and the `[m]` chunks where it is far.
        q, k: `[M, C, K]`.  key_factor: `[M, C, 1]` on k where it stands for a row.  cumulative: `[M, C, K]`.
    """

    chunks: Tensor
    rows: list[tuple[int, Tensor]]
    q: Tensor
    k: Tensor
    key_factor: Tensor
    cumulative: Tensor

    @classmethod
    def find(cls, q: Tensor, k: Tensor, key_factor: Tensor, cumulative: Tensor) -> "FarRows | None":
        """None if there are no far rows, which costs next to nothing to find out."""
        if not (cumulative[:, -1] < -factor_limit(cumulative.dtype)).any():
            return None
        chunks = is_far(cumulative[:, -1]).nonzero().squeeze(1)
        far = is_far(cumulative[chunks])
        rows = [(i, chunks[far[:, i]]) for i in range(far.shape[1]) if far[:, i].any()]
        return cls(chunks, rows, q, k, key_factor, cumulative)

    def replace_scores(self, scores: Tensor) -> None:
        """Puts the exact products into `[M, 2C, C]`: row i those of `key_factor k_i`, row C+i those of q_i."""
        for i, chunks in self.rows:
            raw, weight, k = self._pairs(i, chunks)
            _pair_of_rows(scores)[chunks, :, i, : i + 1] = pair_scores(raw, weight, k)

    def take_gradients(self, d_scores: Tensor, d_k_end: Tensor) -> tuple[Tensor, Tensor]:
        """Moves out of `d_scores` `[M, 2C, C]` and `d_k_end` `[M, C, K]` what belongs to far rows and their chunks.

        Returns:
            Its gradient with respect to the rows, `key_factor k` over q `[M, 2C, K]`, and to k as a column `[M, C, K]`.
        """
        size = self.k.shape[1]
        d_rows, d_k = self.k.new_zeros(len(self.k), 2 * size, self.k.shape[2]), torch.zeros_like(self.k)
        for i, chunks in self.rows:
            raw, weight, k = self._pairs(i, chunks)
            grad = _pair_of_rows(d_scores)[chunks, :, i, : i + 1]
            _pair_of_rows(d_scores)[chunks, :, i] = 0.0
            _pair_of_rows(d_rows)[chunks, :, i] = torch.bmm(grad, weight * k)
            d_k[chunks, : i + 1] += torch.bmm(grad.transpose(1, 2), raw).mul_(weight)
        d_k[self.chunks] += d_k_end[self.chunks] * self._decay_to_end()
        d_k_end[self.chunks] = 0.0
        return d_rows, d_k

    def state_keys(self) -> Tensor:
        """`exp(G_C − G) k` of `chunks`, `[n, C, K]`."""
        return self.k[self.chunks] * self._decay_to_end()

    def _decay_to_end(self) -> Tensor:
        cumulative = self.cumulative[self.chunks]
        return (cumulative[:, -1:] - cumulative).exp_()

    def _pairs(self, i: int, chunks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row i of both kinds `[m, 2, K]`, its decay since each row up to it, and their keys `[m, i+1, K]`."""
        raw = torch.stack([self.k[chunks, i] * self.key_factor[chunks, i], self.q[chunks, i]], 1)
        cumulative = self.cumulative[chunks, : i + 1]
        return raw, (cumulative[:, -1:] - cumulative).exp_(), self.k[chunks, : i + 1]


def _pair_of_rows(x: Tensor) -> Tensor:
    """`[M, 2C, ·]` as `[M, 2, C, ·]`."""
    return x.unflatten(1, (2, -1))
