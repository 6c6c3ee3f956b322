"""First kernel of the chunk form: everything about a chunk that needs no state. One program per chunk and head.

Within a chunk with cumulative log decay G (arXiv 2510.26692, Eqs. 2-9; the notation of `deltarl.kernels.chunk`):

    k⁺ = e^G k     q⁺ = scale e^G q     k⁻ = e^{-G} k     k° = e^{G_C − G} k
    Akk = tril(k⁺ k⁻ᵀ, -1)     Aqk = tril(q⁺ k⁻ᵀ)     T = (I + Diag(β) Akk)⁻¹

`e^{-G}` overflows where decay is strong. A row i with any channel below −LIMIT is "far": its scores are computed by
pairwise differences G_i − G_j ≤ 0, exact for any decay. The test reads row i alone, and G never increases, so a row that
passes has only passing rows before it: no rounding depends on a later token.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltarl.kernels.gpu.index import CHUNK, ChunkIndex
from deltarl.kernels.gpu.inputs import ChunkInputs
from deltarl.kernels.gpu.ops import TRITON_DTYPES, product, rounded, sigmoid
from deltarl.kernels.gpu.rows import cumulative, log_decay, unit_rows
from deltarl.kernels.gpu.slots import SlotState, Tail

# Largest decay, in nats, that exp(-G) may undo, by operand dtype. bf16 has the range of fp32, and its rounding hides that
# of exp; for fp32 the error of exp at larger arguments would show.
LIMIT = {torch.bfloat16: 60.0, torch.float32: 20.0}


class Prepared(NamedTuple):
    """What `prepare` computes; a row per token (`ChunkIndex.storage`), in the operand dtype.

    k_in, q_in, k_out: k⁺, q⁺ and k° `[R, H, K]`.  inverse, attend, keys: rows of T, Aqk and Akk `[R, H, C]` (keys only
    if asked for).  decay: e^{G_C} `[NC, H, K]` fp32.  tail: see `Tail`, only if asked for.
    """

    k_in: Tensor
    q_in: Tensor
    k_out: Tensor
    inverse: Tensor
    attend: Tensor
    keys: Tensor | None
    decay: Tensor
    tail: Tail | None


@triton.jit
def far_scores(rows, k, cum, far, LIMIT: tl.constexpr, C: tl.constexpr, OPERAND: tl.constexpr):
    """`Σ_d rows_i k_j exp(G_i − G_j)` `[C, C]` for the far rows i; other entries are meaningless."""
    column = tl.arange(0, C)
    scores = tl.zeros([C, C], tl.float32)
    for j in range(C):
        at_j = tl.sum(tl.where(column[:, None] == j, cum, 0.0), 0)
        weighted = tl.where(far[:, None], rows * tl.exp(tl.minimum(cum - at_j[None, :], 0.0)), 0.0)
        at_column = product(rounded(weighted, OPERAND), tl.trans(k.to(OPERAND)))
        scores = tl.where(column[None, :] == j, at_column, scores)
    return scores


@triton.jit
def solve_rows(lower, inverse, C: tl.constexpr):
    """Rows of `(I + lower)⁻¹` `[C, C]`, `lower` strictly lower triangular, in the order of their terms.

    `inverse` holds the identity; rows already known may stand in it with zero rows of `lower`.
    """
    row, column = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    for j in range(C - 1):
        factor = tl.sum(tl.where(column == j, lower, 0.0), 1)
        solved = tl.sum(tl.where(row == j, inverse, 0.0), 0)
        inverse = tl.fma(tl.broadcast_to(-factor[:, None], [C, C]), tl.broadcast_to(solved[None, :], [C, C]), inverse)
    return inverse


@triton.jit
def prepare_kernel(
    q, k, g, beta, a_log, dt_bias,
    k_in, q_in, k_out, inverse, attend, keys, decay,
    cu_seqlens, storage, first_chunk, chunk_sequence,
    offset, slots, slot_k, slot_g, slot_t, tail_k, tail_g, tail_t,
    q_stride, k_stride, g_stride, beta_stride, scale, lower_bound, num_sequences,
    H: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
    GATE: tl.constexpr, NORM: tl.constexpr, SIGMOID: tl.constexpr, OPERAND: tl.constexpr, LIMIT: tl.constexpr,
    KEYS: tl.constexpr, CONTINUE: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    chunk, head = tl.program_id(0) // H, tl.program_id(0) % H
    n = tl.load(chunk_sequence + chunk)
    if n >= num_sequences:
        return
    local = chunk - tl.load(first_chunk + n)
    begin, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    first = begin + local * C
    if CONTINUE:
        first -= tl.load(offset + n)

    row, channel = tl.arange(0, C), tl.arange(0, K)
    token = first + row
    valid = (token >= begin) & (token < end)
    inside = valid[:, None]
    within = head * K + channel[None, :]
    q_row, _ = unit_rows(tl.load(q + token[:, None] * q_stride + within, inside, 0.0), NORM, C, K, OPERAND)
    k_row, _ = unit_rows(tl.load(k + token[:, None] * k_stride + within, inside, 0.0), NORM, C, K, OPERAND)
    gate = tl.load(g + token[:, None] * g_stride + within, inside, 0.0).to(tl.float32)
    b = tl.load(beta + token * beta_stride + head, valid, 0.0).to(tl.float32)
    if SIGMOID:
        b = sigmoid(b)
    b = tl.where(valid, b, 0.0)
    step = tl.where(inside, log_decay(gate, a_log, dt_bias, lower_bound, head, GATE, K), 0.0)

    start = tl.zeros([C, K], tl.float32)
    inv = tl.where(row[:, None] == row[None, :], 1.0, 0.0)
    present = token < end
    if CONTINUE:
        # Rows before `begin` stand in the sequence's slot, where a former call or the decoder left them.
        known = ((token < begin) & (token >= first))[:, None]
        slot = tl.load(slots + n).to(tl.int64) * H + head
        old = (slot * C + row)[:, None] * K + channel[None, :]
        k_row = tl.where(known, tl.load(slot_k + old, known, 0.0).to(tl.float32), k_row)
        old_g = tl.load(slot_g + old, known, 0.0)
        last = tl.sum(tl.where((token == begin - 1)[:, None], old_g, 0.0), 0)
        start = tl.where(known, old_g, tl.broadcast_to(last[None, :], [C, K]))
        inv = tl.where(known, tl.load(slot_t + (slot * C + row)[:, None] * C + row[None, :], known, 0.0), inv)
    cum = cumulative(step, start, C)

    up = tl.exp(cum)
    k_up, q_up = rounded(k_row * up, OPERAND), rounded(q_row * scale * up, OPERAND)
    k_down = tl.trans(rounded(k_row * tl.exp(tl.minimum(-cum, LIMIT)), OPERAND))
    akk = product(k_up, k_down)
    aqk = product(q_up, k_down)
    far = tl.max(tl.where(cum < -LIMIT, 1, 0), 1) > 0
    if tl.max(tl.where(far, 1, 0), 0) > 0:
        akk = tl.where(far[:, None], far_scores(k_row, k_row, cum, far, LIMIT, C, OPERAND), akk)
        aqk = tl.where(far[:, None], far_scores(q_row * scale, k_row, cum, far, LIMIT, C, OPERAND), aqk)
    akk = tl.where(row[:, None] > row[None, :], akk, 0.0)
    aqk = tl.where(row[:, None] >= row[None, :], aqk, 0.0)
    inv = solve_rows(b[:, None] * akk, inv, C)
    at_end = tl.sum(tl.where((row == C - 1)[:, None], cum, 0.0), 0)

    at = (tl.load(storage + n) + local * C + row) * H + head
    tile, square = at[:, None] * K + channel[None, :], at[:, None] * C + row[None, :]
    tl.store(k_in + tile, k_up, present[:, None])
    tl.store(q_in + tile, q_up, present[:, None])
    tl.store(k_out + tile, rounded(k_row * tl.exp(at_end[None, :] - cum), OPERAND), present[:, None])
    tl.store(inverse + square, rounded(inv, OPERAND), present[:, None])
    tl.store(attend + square, rounded(aqk, OPERAND), present[:, None])
    if KEYS:
        tl.store(keys + square, rounded(akk, OPERAND), present[:, None])
    tl.store(decay + (chunk.to(tl.int64) * H + head) * K + channel, tl.exp(at_end))
    if TAIL:
        if first + C >= end:
            at = ((n.to(tl.int64) * H + head) * C + row)[:, None]
            tl.store(tail_k + at * K + channel[None, :], k_row.to(OPERAND))
            tl.store(tail_g + at * K + channel[None, :], cum)
            tl.store(tail_t + at * C + row[None, :], inv)


def prepare(
    x: ChunkInputs, index: ChunkIndex, keys: bool = False, slots: Tensor | None = None, state: SlotState | None = None
) -> Prepared:
    """Launches the kernel over all chunks of `x`.

    Args:
        keys: also keep Akk, which the backward pass needs.
        slots, state: where the sequences of a prefill are to live in decode, `[N]`; asks for a tail.
    """
    tokens, heads, key_dim = x.q.shape
    rows, chunks, sequences = index.storage_rows(tokens), len(index.chunk_sequence), index.num_sequences
    wide = [x.q.new_empty(rows, heads, key_dim, dtype=x.operand) for _ in range(3)]
    square = [x.q.new_empty(rows, heads, CHUNK, dtype=x.operand) for _ in range(2 + keys)]
    decay = x.q.new_empty(chunks, heads, key_dim, dtype=torch.float32)
    tail = None if state is None else Tail.empty(sequences, state)
    if chunks:
        prepare_kernel[(chunks * heads,)](
            x.q, x.k, x.g, x.beta, x.gate.a_log, x.gate.dt_bias,
            *wide, *square[:2], square[2] if keys else None, decay,
            index.cu_seqlens, index.storage, index.first_chunk, index.chunk_sequence,
            index.offset, slots, *((state.k, state.cumulative, state.inverse) if state else (None,) * 3),
            *(tail or (None,) * 3),
            x.q.stride(0), x.k.stride(0), x.g.stride(0), x.beta.stride(0), x.scale, x.gate.lower_bound, sequences,
            H=heads, K=key_dim, C=CHUNK, GATE=x.gate.kind, NORM=x.norm, SIGMOID=x.sigmoid,
            OPERAND=TRITON_DTYPES[x.operand], LIMIT=LIMIT[x.operand], KEYS=keys,
            CONTINUE=index.offset is not None, TAIL=state is not None, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return Prepared(*wide, *square[:2], square[2] if keys else None, decay, tail)
