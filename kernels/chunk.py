"""KDA a chunk at a time: the form that trains and prefills.

Within a chunk with cumulative log decay G (arXiv 2510.26692, Eqs. 2-9, in the notation of the flash-linear-attention
kernels), S being the state at the start of the chunk:

    Akk[i,j] = Σ_d k_i k_j exp(G_i − G_j)  (i > j)          Aqk[i,j] = scale Σ_d q_i k_j exp(G_i − G_j)  (i ≥ j)
    (I + Diag(β) Akk) v' = β (v − (e^G k) S)                the delta rule of the chunk, one triangular solve
    o = scale (e^G q) S + Aqk v'                            S⁺ = Diag(e^{G_C}) S + (e^{G_C−G} k)ᵀ v'

`decode.py` computes one row of exactly this, so that sampler and learner agree to rounding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deltarl.kernels.layout import ChunkLayout

CHUNK_SIZE = 16

# Largest decay, in nats, that exp(-G) may undo. exp(60) leaves fp32 room on both sides (products stay normal numbers),
# and 60 nats in 16 tokens is stronger decay than a softplus gate shows at initialisation (at most 26).
FACTOR_LIMIT = 60.0


@dataclass
class ChunkBuffer:
    """The unfinished last chunk of each sequence: what a decoder needs to go on from any length.

    state: `[N, H, K, V]` at the last chunk boundary.  k, cumulative: `[N, H, C, K]`.  v_new: `[N, H, C, V]`.
    length: `[N]` rows in use, 0..C-1. Rows beyond are zero in k and v_new, and repeat the last cumulative decay.
    """

    state: Tensor
    k: Tensor
    cumulative: Tensor
    v_new: Tensor
    length: Tensor


def inverse_decay(cumulative: Tensor) -> Tensor:
    """`exp(-G)`, finite for any G. Clipped entries are only ever used in rows that `exact_scores` replaces."""
    return (-cumulative).clamp_max(FACTOR_LIMIT).exp()


def beyond_factors(cumulative: Tensor) -> Tensor:
    """Rows `[...]` of G `[..., K]` whose decay cannot be split into exp(G_i)·exp(-G_j).

    G never increases, so if row i passes then so does every j ≤ i: the test looks at no later row, and neither
    therefore does any rounding: the form is causal to the bit.
    """
    return (cumulative < -FACTOR_LIMIT).any(-1)


def exact_scores(rows: Tensor, row_decay: Tensor, k: Tensor, cumulative: Tensor, visible: Tensor) -> Tensor:
    """`Σ_d rows_i k_j exp(G_i − G_j)` by pairwise differences: slow, and exact for any decay.

    Args:
        rows: `[..., R, K]` (q or k).  row_decay: `[..., R, K]` their G.  k, cumulative: `[..., C, K]`.
        visible: `[..., R, C]` bool, which j a row i may see; others come out 0.
    """
    gap = row_decay.unsqueeze(-2) - cumulative.unsqueeze(-3)
    weight = gap.masked_fill(~visible.unsqueeze(-1), float("-inf")).exp()
    return (rows.unsqueeze(-2) * k.unsqueeze(-3) * weight).sum(-1)


def chunk_scores(rows: Tensor, q: Tensor, k: Tensor, cumulative: Tensor) -> Tensor:
    """Akk over Aqk, `[NC, H, 2C, C]`; entries above the diagonal are finite and meaningless.

    Args:
        rows: `[NC, H, 2C, K]`, e^G k over e^G q.  q, k, cumulative: `[NC, H, C, K]`.
    """
    scores = rows @ (k * inverse_decay(cumulative)).transpose(-1, -2)
    far = beyond_factors(cumulative)
    if far.any():
        index = far.any(-1).nonzero(as_tuple=True)  # the chunks and heads with such a row
        size = k.shape[-2]
        visible = torch.ones(size, size, dtype=torch.bool, device=k.device).tril().repeat(2, 1)
        decay = cumulative[index]
        exact = exact_scores(
            torch.cat([k[index], q[index]], -2), torch.cat([decay, decay], -2), k[index], decay, visible
        )
        mixed = torch.where(far[index].repeat(1, 2).unsqueeze(-1), exact, scores[index])
        scores = scores.index_put(index, mixed)
    return scores


def chunk_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float,
    initial_state: Tensor,
    layout: ChunkLayout,
    output_buffer: bool = False,
) -> tuple[Tensor, Tensor, ChunkBuffer | None]:
    """Chunkwise KDA over packed sequences; same function as `recurrent_kda`, same argument shapes.

    Args:
        initial_state: `[N, H, K, V]`, the state each sequence starts from.
        layout: made from the sequence bounds with `ChunkLayout.build`.
        output_buffer: also return the state at the last chunk boundary with the rows since then.

    Returns:
        Output `[T, H, V]`, final state `[N, H, K, V]`, and the buffer or None.
    """
    size = layout.chunk_size
    q, k, v, g = (layout.to_chunks(x) for x in (q * scale, k, v, g))
    beta = layout.to_chunks(beta.unsqueeze(-1))
    cumulative = g.cumsum(-2)
    decay = cumulative.exp()
    rows = torch.cat([k * decay, q * decay], -2)
    lower, attend = chunk_scores(rows, q, k, cumulative).split(size, -2)
    lower = beta * lower  # the solve reads only what lies below the diagonal
    attend = attend.tril()
    k_end = (k * (cumulative[..., -1:, :] - cumulative).exp()).transpose(-1, -2)
    decay_end = decay[..., -1, :].unsqueeze(-1)

    # A step's running sequences are a prefix of the step before's; those that end at it are collected as they fall off.
    running = layout.active[0] if layout.active else 0
    state = initial_state[layout.order]
    ended = [(state[running:], state[running:], v.new_zeros(len(state) - running, v.shape[1], size, v.shape[3]))]
    state = state[:running]
    outputs = [v.new_zeros(0, v.shape[1], size, v.shape[3])]
    # Split once, because the gradient of n slices is n sums over the whole tensor, that of one split a concatenation.
    steps = zip(*(x.split(layout.active) for x in (rows, lower, attend, beta, v, k_end, decay_end)), strict=True)
    for still_running, (rows_j, lower_j, attend_j, beta_j, v_j, k_end_j, decay_end_j) in zip(
        (*layout.active[1:], 0), steps, strict=False
    ):
        read_v, read_out = (rows_j @ state).split(size, -2)
        v_new = torch.linalg.solve_triangular(lower_j, beta_j * (v_j - read_v), upper=False, unitriangular=True)
        outputs.append(read_out + attend_j @ v_new)
        boundary, state = state, torch.addcmul(k_end_j @ v_new, decay_end_j, state)
        ended.append((state[still_running:], boundary[still_running:], v_new[still_running:]))
        state = state[:still_running]

    out = layout.from_chunks(torch.cat(outputs))
    rank = torch.argsort(layout.order)
    final_state, boundary, v_new = (torch.cat(parts[::-1])[rank] for parts in zip(*ended, strict=True))
    if not output_buffer:
        return out, final_state, None
    open_chunk = (layout.tail % size > 0).view(-1, 1, 1, 1)
    buffer = ChunkBuffer(
        state=torch.where(open_chunk, boundary, final_state),
        k=k[layout.last_chunk],
        cumulative=cumulative[layout.last_chunk],
        v_new=v_new,
        length=layout.tail % size,
    )
    return out, final_state, buffer
