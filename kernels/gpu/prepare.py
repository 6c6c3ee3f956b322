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
from deltarl.kernels.gpu.rows import cumulative, log_decay, unit_lower_inverse, unit_columns
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
def far_scores(x, k, cum, far, C: tl.constexpr, OPERAND: tl.constexpr):
    """`Σ_d x_i k_j exp(G_i − G_j)` `[C, C]` for the far rows i of `[K, C]` tiles; other entries are meaningless."""
    column = tl.arange(0, C)[None, :]
    scores = tl.zeros([C, C], tl.float32)
    keys = rounded(k, OPERAND)
    for j in range(C):
        at_j = tl.sum(tl.where(column == j, cum, 0.0), 1)[:, None]
        weighted = tl.where(far[None, :], x * tl.exp(tl.minimum(cum - at_j, 0.0)), 0.0)
        at_column = product(tl.trans(rounded(weighted, OPERAND)), keys)
        scores = tl.where(column == j, at_column, scores)
    return scores


@triton.jit
def prepare_kernel(
    q, k, g, beta, a_log, dt_bias,
    k_in, q_in, k_out, inverse, attend, keys_out, decay,
    cu_seqlens, storage, first_chunk, chunk_sequence,
    offset, slots, slot_k, slot_g, slot_l, tail_k, tail_g, tail_l,
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
    valid, present = (token >= begin) & (token < end), token < end
    inside, here = valid[None, :], present[None, :]
    within = head * K + channel[:, None]
    gate = tl.load(g + token[None, :] * g_stride + within, inside, 0.0).to(tl.float32)
    step = tl.where(inside, log_decay(gate, a_log, dt_bias, lower_bound, head, GATE, K), 0.0)
    keys, _ = unit_columns(tl.load(k + token[None, :] * k_stride + within, inside, 0.0), NORM, C, OPERAND)
    if CONTINUE:
        # Rows before `begin` stand in the sequence's slot, where a former call or the decoder left them.
        known = (token < begin) & (token >= first)
        old_row = (tl.load(slots + n).to(tl.int64) * H + head) * C + row
        old = old_row[None, :] * K + channel[:, None]
        keys = tl.where(known[None, :], tl.load(slot_k + old, known[None, :], 0.0).to(tl.float32), keys)
        step = tl.where(known[None, :], tl.load(slot_g + old, known[None, :], 0.0), step)
    cum = cumulative(step, C, OPERAND)
    up = tl.exp(cum)

    at = (tl.load(storage + n) + local * C + row) * H + head
    tile, square = at[None, :] * K + channel[:, None], at[:, None] * C + row[None, :]
    k_up = rounded(keys * up, OPERAND)
    k_down = rounded(keys * tl.exp(tl.minimum(-cum, LIMIT)), OPERAND)
    akk = product(tl.trans(k_up), k_down)
    tl.store(k_in + tile, k_up, here)
    at_end = tl.sum(tl.where((row == C - 1)[None, :], cum, 0.0), 1)
    tl.store(k_out + tile, rounded(keys * tl.exp(at_end[:, None] - cum), OPERAND), here)
    tl.store(decay + (chunk.to(tl.int64) * H + head) * K + channel, tl.exp(at_end))
    queries, _ = unit_columns(tl.load(q + token[None, :] * q_stride + within, inside, 0.0), NORM, C, OPERAND)
    queries *= scale
    q_up = rounded(queries * up, OPERAND)
    aqk = product(tl.trans(q_up), k_down)
    tl.store(q_in + tile, q_up, here)

    far = tl.max(tl.where(cum < -LIMIT, 1, 0), 0) > 0
    if tl.max(tl.where(far, 1, 0), 0) > 0:
        akk = tl.where(far[:, None], far_scores(keys, keys, cum, far, C, OPERAND), akk)
        aqk = tl.where(far[:, None], far_scores(queries, keys, cum, far, C, OPERAND), aqk)
    akk = tl.where(row[:, None] > row[None, :], akk, 0.0)
    aqk = tl.where(row[:, None] >= row[None, :], aqk, 0.0)
    b = tl.load(beta + token * beta_stride + head, valid, 0.0).to(tl.float32)
    if SIGMOID:
        b = sigmoid(b)
    lower = b[:, None] * akk
    if CONTINUE:
        old = old_row[:, None] * C + row[None, :]
        lower = tl.where(known[:, None], tl.load(slot_l + old, known[:, None], 0.0), lower)
    tl.store(attend + square, rounded(aqk, OPERAND), present[:, None])
    if KEYS:
        tl.store(keys_out + square, rounded(akk, OPERAND), present[:, None])
    tl.store(inverse + square, rounded(unit_lower_inverse(lower, C, OPERAND), OPERAND), present[:, None])
    if TAIL:
        if first + C >= end:
            tail = (n.to(tl.int64) * H + head) * C + row
            tl.store(tail_k + tail[None, :] * K + channel[:, None], rounded(keys, OPERAND))
            tl.store(tail_g + tail[None, :] * K + channel[:, None], step)
            tl.store(tail_l + tail[:, None] * C + row[None, :], lower)


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
            index.offset, slots, *((state.k, state.g, state.lower) if state else (None,) * 3),
            *(tail or (None,) * 3),
            x.q.stride(0), x.k.stride(0), x.g.stride(0), x.beta.stride(0), x.scale, x.gate.lower_bound, sequences,
            H=heads, K=key_dim, C=CHUNK, GATE=x.gate.kind, NORM=x.norm, SIGMOID=x.sigmoid,
            OPERAND=TRITON_DTYPES[x.operand], LIMIT=LIMIT[x.operand], KEYS=keys,
            CONTINUE=index.offset is not None, TAIL=state is not None, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return Prepared(*wide, *square[:2], square[2] if keys else None, decay, tail)
