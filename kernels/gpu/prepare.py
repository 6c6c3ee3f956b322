"""First kernel of the chunk form: everything about a chunk that needs no state. One program per chunk and head.

Within a chunk with cumulative log decay G (arXiv 2510.26692, Eqs. 2-9; the notation of `deltarl.kernels.chunk`):

    k⁺ = e^G k     q⁺ = scale e^G q     k⁻ = e^{-G} k     k° = e^{G_C − G} k
    Akk = tril(k⁺ k⁻ᵀ, -1)     Aqk = tril(q⁺ k⁻ᵀ)     T = (I + Diag(β) Akk)⁻¹

`e^{-G}` overflows where decay is strong. So the scores take `2^A e^G` and `2^{-A} e^{-G}` instead, which reaches twice
as far. A row i with any channel below −2A ln 2 is "far": its scores are computed by pairwise differences G_i − G_j ≤ 0,
exact for any decay. The test reads row i alone, and G never increases, so a row that passes has only passing rows
before it: no rounding depends on a later token.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltarl.kernels.gpu.index import CHUNK, ChunkIndex
from deltarl.kernels.gpu.inputs import ChunkInputs
from deltarl.kernels.gpu.ops import TRITON_DTYPES, exponential, operand, product, registers, rounded, sigmoid, spread
from deltarl.kernels.gpu.rows import cumulative, log_decay, unit_columns, unit_lower_inverse
from deltarl.kernels.gpu.slots import SlotState, Tail

# A, by operand dtype. bf16 has the range of fp32, and its rounding hides that of exp; for fp32 the error of exp at
# larger arguments would show.
ANCHOR = {torch.bfloat16: 92, torch.float32: 28}
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


class Trace(NamedTuple):
    """What the backward pass would otherwise compute again.

    keys: rows of Akk `[R, H, C]` in the operand dtype.  cum: G `[R, H, K]` fp32.  q_rstd, k_rstd: 1/norm `[R, H]` fp32.
    """

    keys: Tensor
    cum: Tensor
    q_rstd: Tensor
    k_rstd: Tensor


class Prepared(NamedTuple):
    """What `prepare` computes; a row per token (`ChunkIndex.storage`), in the operand dtype.

    k_in, q_in, k_out: k⁺, q⁺ and k° `[R, H, K]`.  inverse, attend: rows of T and Aqk `[R, H, C]`.
    decay: e^{G_C} `[NC, H, K]` fp32.  tail, trace: see `Tail` and `Trace`, only if asked for.
    """

    k_in: Tensor
    q_in: Tensor
    k_out: Tensor
    inverse: Tensor
    attend: Tensor
    decay: Tensor
    tail: Tail | None
    trace: Trace | None


@triton.jit
def fall(cum, ANCHOR: tl.constexpr):
    """`2^{-A} e^{-G}`, finite for any G: clipped where `beyond` is true, for which it is not used."""
    return exponential(tl.minimum(-ANCHOR * LN2 - cum, ANCHOR * LN2))


@triton.jit
def beyond(cum, ANCHOR: tl.constexpr):
    """Columns of G `[K, C]` that hold a value below −2A ln 2, `[C]` bool."""
    return tl.max(tl.where(cum < -2 * ANCHOR * LN2, 1, 0), 0) > 0


@triton.jit
def lowered(x, ANCHOR: tl.constexpr, OPERAND: tl.constexpr):
    """Operand `x · 2^{-A}`, exactly."""
    return rounded(x.to(tl.float32) * (2.0**-ANCHOR), OPERAND)


@triton.jit
def far_scores(x, k, cum, far, C: tl.constexpr, OPERAND: tl.constexpr):
    """`Σ_d x_i k_j exp(G_i − G_j)` `[C, C]` for the far rows i of `[K, C]` tiles; other entries are meaningless."""
    column = tl.arange(0, C)[None, :]
    scores = tl.zeros([C, C], tl.float32)
    keys = rounded(k, OPERAND)
    for j in range(C):
        at_j = tl.sum(tl.where(column == j, cum, 0.0), 1)[:, None]
        weighted = tl.where(far[None, :], x * exponential(tl.minimum(cum - at_j, 0.0)), 0.0)
        at_column = product(tl.trans(rounded(weighted, OPERAND)), keys)
        scores = tl.where(column == j, at_column, scores)
    return scores


@triton.jit
def prepare_kernel(
    q, k, g, beta, a_log, dt_bias,
    k_in, q_in, k_out, inverse, attend, decay, trace_keys, trace_cum, trace_q, trace_k,
    cu_seqlens, storage, first_chunk, chunk_sequence,
    offset, slots, slot_k, slot_g, slot_l, tail_k, tail_g, tail_l,
    q_stride, k_stride, g_stride, beta_stride, scale, lower_bound, num_sequences,
    H: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
    GATE: tl.constexpr, NORM: tl.constexpr, SIGMOID: tl.constexpr, OPERAND: tl.constexpr, ANCHOR: tl.constexpr,
    TRACE: tl.constexpr, CONTINUE: tl.constexpr, TAIL: tl.constexpr,
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
    valid, present = (row >= begin - first) & (row < end - first), row < end - first
    inside, here = valid[None, :], present[None, :]
    # 64-bit offsets only where they are the same for the whole tile.
    within = first * g_stride + head * K
    gate = spread(tl.load(g + within + (row[None, :] * g_stride + channel[:, None]), inside, 0.0), 1.0, C)
    step = tl.where(inside, log_decay(gate, a_log, dt_bias, lower_bound, head, GATE, K), 0.0)
    within = first * k_stride + head * K
    keys = tl.load(k + within + (row[None, :] * k_stride + channel[:, None]), inside, 0.0)
    keys, k_rstd = unit_columns(keys, NORM, C, OPERAND)
    if CONTINUE:
        # Rows before `begin` stand in the sequence's slot, where a former call or the decoder left them.
        known = row < begin - first
        slot = (tl.load(slots + n).to(tl.int64) * H + head) * C
        old = row[None, :] * K + channel[:, None]
        keys = tl.where(known[None, :], tl.load(slot_k + slot * K + old, known[None, :], 0.0).to(tl.float32), keys)
        step = tl.where(known[None, :], tl.load(slot_g + slot * K + old, known[None, :], 0.0), step)
    cum = cumulative(step, C, OPERAND)
    up = exponential(cum + ANCHOR * LN2)

    at = (tl.load(storage + n) + local * C) * H + head
    tile, square = row[None, :] * (H * K) + channel[:, None], row[:, None] * (H * C) + row[None, :]
    k_up, k_down = operand(keys * up, OPERAND), operand(keys * fall(cum, ANCHOR), OPERAND)
    akk = product(tl.trans(k_up), k_down)
    tl.store(k_in + at * K + tile, lowered(k_up, ANCHOR, OPERAND), here)
    at_end = tl.sum(tl.where((row == C - 1)[None, :], cum, 0.0), 1)
    tl.store(k_out + at * K + tile, operand(keys * exponential(at_end[:, None] - cum), OPERAND), here)
    tl.store(decay + (chunk.to(tl.int64) * H + head) * K + channel, exponential(at_end))
    within = first * q_stride + head * K
    queries = tl.load(q + within + (row[None, :] * q_stride + channel[:, None]), inside, 0.0)
    queries, q_rstd = unit_columns(queries, NORM, C, OPERAND)
    queries *= scale
    q_up = operand(queries * up, OPERAND)
    aqk = product(tl.trans(q_up), k_down)
    tl.store(q_in + at * K + tile, lowered(q_up, ANCHOR, OPERAND), here)

    if tl.min(at_end, 0) < -2 * ANCHOR * LN2:
        far = beyond(cum, ANCHOR)
        akk = tl.where(far[:, None], far_scores(keys, keys, cum, far, C, OPERAND), akk)
        aqk = tl.where(far[:, None], far_scores(queries, keys, cum, far, C, OPERAND), aqk)
    akk = tl.where(row[:, None] > row[None, :], akk, 0.0)
    aqk = tl.where(row[:, None] >= row[None, :], aqk, 0.0)
    b = tl.load(beta + first * beta_stride + head + row * beta_stride, valid, 0.0).to(tl.float32)
    if SIGMOID:
        b = sigmoid(b)
    lower = b[:, None] * akk
    if CONTINUE:
        old = row[:, None] * C + row[None, :]
        lower = tl.where(known[:, None], tl.load(slot_l + slot * C + old, known[:, None], 0.0), lower)
    tl.store(attend + at * C + square, rounded(aqk, OPERAND), present[:, None])
    solve = unit_lower_inverse(lower, C)
    tl.store(inverse + at * C + square, rounded(solve, OPERAND), present[:, None])
    if TRACE:
        tl.store(trace_keys + at * C + square, rounded(akk, OPERAND), present[:, None])
        tl.store(trace_cum + at * K + tile, cum, here)
        tl.store(trace_q + at + row * H, q_rstd, present)
        tl.store(trace_k + at + row * H, k_rstd, present)
    if TAIL:
        if first + C >= end:
            tail = (n.to(tl.int64) * H + head) * C
            tl.store(tail_k + tail * K + (row[None, :] * K + channel[:, None]), rounded(keys, OPERAND))
            tl.store(tail_g + tail * K + (row[None, :] * K + channel[:, None]), step)
            tl.store(tail_l + tail * C + (row[:, None] * C + row[None, :]), lower)


def prepare(
    x: ChunkInputs, index: ChunkIndex, trace: bool = False, slots: Tensor | None = None, state: SlotState | None = None
) -> Prepared:
    """Launches the kernel over all chunks of `x`.

    Args:
        trace: for the backward pass.
        slots, state: where the sequences of a prefill are to live in decode, `[N]`; asks for a tail.
    """
    tokens, heads, key_dim = x.q.shape
    rows, chunks, sequences = index.storage_rows(tokens), len(index.chunk_sequence), index.num_sequences
    k_in, q_in, k_out = (x.q.new_empty(rows, heads, key_dim, dtype=x.operand) for _ in range(3))
    inverse, attend = (x.q.new_empty(rows, heads, CHUNK, dtype=x.operand) for _ in range(2))
    decay = x.q.new_empty(chunks, heads, key_dim, dtype=torch.float32)
    tail = None if state is None else Tail.empty(sequences, state)
    kept = None
    if trace:
        norms = [decay.new_empty(rows, heads) for _ in range(2)]
        kept = Trace(torch.empty_like(attend), decay.new_empty(rows, heads, key_dim), *norms)
    warps = 4 if x.operand == torch.float32 else 2
    if chunks:
        prepare_kernel[(chunks * heads,)](
            x.q, x.k, x.g, x.beta, x.gate.a_log, x.gate.dt_bias,
            k_in, q_in, k_out, inverse, attend, decay, *(kept or (None,) * 4),
            index.cu_seqlens, index.storage, index.first_chunk, index.chunk_sequence,
            index.offset, slots, *((state.k, state.g, state.lower) if state else (None,) * 3),
            *(tail or (None,) * 3),
            x.q.stride(0), x.k.stride(0), x.g.stride(0), x.beta.stride(0), x.scale, x.gate.lower_bound, sequences,
            H=heads, K=key_dim, C=CHUNK, GATE=x.gate.kind, NORM=x.norm, SIGMOID=x.sigmoid,
            OPERAND=TRITON_DTYPES[x.operand], ANCHOR=ANCHOR[x.operand], TRACE=trace,
            CONTINUE=index.offset is not None, TAIL=state is not None,
            num_warps=warps, enable_fp_fusion=False, **registers(168),
        )  # fmt: skip
    return Prepared(k_in, q_in, k_out, inverse, attend, decay, tail, kept)
