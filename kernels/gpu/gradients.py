"""Last kernels of the backward pass: the gradients of q, k, v, the gate and beta.

With S, dS⁺ and v' of `walk`, dv = β db, and dL = −db v'ᵀ below the diagonal, which is what the gradient of
T = (I + L)⁻¹, L = Diag(β) Akk, comes to:

    dAqk = tril(do v'ᵀ)          dAkk = −tril(dv v'ᵀ, -1)        dβ = Σ_v db (v − k⁺ S) + Σ_j dL Akk
    dq⁺  = S do + dAqk k⁻        dk⁺  = −S dv + dAkk k⁻          dk⁻ = dAqkᵀ q⁺ + dAkkᵀ k⁺       dk° = dS⁺ v'
    dq = scale e^G dq⁺           dk = e^G dk⁺ + e^{-G} dk⁻ + e^{G_C−G} dk°
    dG = q dq + k (e^G dk⁺ − e^{-G} dk⁻ − e^{G_C−G} dk°)         dg_t = Σ_{s≥t} dG_s + Σ_v S_end dS_end

The last sum runs over the rest of the group, S_end being the state at its end: so its rounding errors cannot pile up
over a long sequence. Rows whose decay cannot be undone ("far", see `prepare`) take their part of the products with
k⁻, and of dk⁻, by pairwise differences. No sum is left to the order in which programs finish.

`pairs_kernel`, one warp per chunk and head, does what is of the size of V: dAqk, dAkk, dv and dβ. (Every warp of a
larger program would compute the whole of a product of 16 rows.) `gradients_kernel`, one program per group and head,
does the rest. It is launched twice, for the groups with far rows and for the others: code for far rows, though hardly
ever run, would cost the others registers.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltarl.kernels.gpu.index import CHUNK, GROUP, ChunkIndex
from deltarl.kernels.gpu.inputs import ChunkInputs
from deltarl.kernels.gpu.ops import TRITON_DTYPES, exponential, operand, product, rounded, sigmoid, spread, summed
from deltarl.kernels.gpu.prepare import ANCHOR, LN2, Prepared, beyond, fall
from deltarl.kernels.gpu.rows import log_decay_gradient
from deltarl.kernels.gpu.walk import Walked


class Gradients(NamedTuple):
    """q, k, v, g, beta: in the shapes and dtypes of the inputs.

    parts: of A_log and dt_bias, by group of chunks and channel `[2, NG, H, K]` fp32; K is 0 without a gate.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    parts: Tensor

    @classmethod
    def empty(cls, x: ChunkInputs, index: ChunkIndex) -> "Gradients":
        """For the gradients of `x` to be written into."""
        q, k, v, g, beta = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in x.tensors().values())
        groups, channels = len(index.group_sequence), x.q.shape[-1] if x.gate.kind else 0
        parts = torch.zeros(2, groups, x.q.shape[1], channels, device=x.q.device)
        return cls(q, k, v, g, beta, parts)

    def heads(self, some: slice) -> "Gradients":
        """A view of those of some heads."""
        q, k, v, g, beta = (t[:, some] for t in self[:5])
        return Gradients(q, k, v, g, beta, self.parts[:, :, some])

    def a_log(self) -> Tensor:
        """`[H]` fp32"""
        return self.parts[0].sum((0, 2))

    def dt_bias(self) -> Tensor:
        """`[H*K]` fp32"""
        return self.parts[1].sum(0).flatten()


@triton.jit
def unit_columns_gradient(d, unit, rstd, NORM: tl.constexpr):
    """Gradient before L2 normalisation of columns: `rstd (d − unit (unit · d))`."""
    if NORM:
        d = rstd[None, :] * (d - unit * tl.sum(unit * d, 0)[None, :])
    return d


@triton.jit
def far_gradients(d_aqk, d_akk, queries, keys, cum, far, C: tl.constexpr, K: tl.constexpr):
    """The far rows' part of `Σ_j dA_ij k_j e^{G_i−G_j}` for q and k, and of dk_j `Σ_i e^{G_i−G_j} (dA_ij x_i)`.

    d_aqk, d_akk: `[C, C]` below the diagonal.  queries, keys, cum and results: `[K, C]`.
    """
    column = tl.arange(0, C)
    d_q, d_k, d_key = tl.zeros([K, C], tl.float32), tl.zeros([K, C], tl.float32), tl.zeros([K, C], tl.float32)
    for j in range(C):
        is_j = column[None, :] == j
        at_j = tl.sum(tl.where(is_j, cum, 0.0), 1)[:, None]
        k_j = tl.sum(tl.where(is_j, keys, 0.0), 1)[:, None]
        weight = tl.where(far[None, :], exponential(tl.minimum(cum - at_j, 0.0)), 0.0)
        qk = tl.sum(tl.where(is_j, d_aqk, 0.0), 1)[None, :] * weight
        kk = tl.sum(tl.where(is_j, d_akk, 0.0), 1)[None, :] * weight
        d_q += qk * k_j
        d_k += kk * k_j
        d_key += tl.where(is_j, tl.sum(qk * queries + kk * keys, 1)[:, None], 0.0)
    return d_q, d_k, d_key


@triton.jit
def pairs_kernel(
    beta, keys_in, d_out, d_rows, new_in, error_in, d_v, d_beta, d_attend, d_keys, d_diagonal,
    cu_seqlens, first_chunk, chunk_sequence, beta_stride, num_sequences, num_tokens,
    H: tl.constexpr, ALL: tl.constexpr, V: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr,
    SIGMOID: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    chunk, head = tl.program_id(0) // H, tl.program_id(0) % H
    n = tl.load(chunk_sequence + chunk)
    if n >= num_sequences:
        return
    first, end = tl.load(cu_seqlens + n) + (chunk - tl.load(first_chunk + n)) * C, tl.load(cu_seqlens + n + 1)
    at, at_all = first * H + head, first * ALL + head
    row = tl.arange(0, C)
    valid = row < tl.minimum(end - first, C).to(tl.int32)
    inside, strict = valid[:, None], row[:, None] > row[None, :]
    # 64-bit offsets only where they are the same for the whole tile.
    value = tl.arange(0, V)[None, :]
    tile, out_tile = row[:, None] * (H * V) + value, row[:, None] * (ALL * V) + value
    square = row[:, None] * (H * C) + row[None, :]

    b = tl.load(beta + first * beta_stride + head + row * beta_stride, valid, 0.0).to(tl.float32)
    if SIGMOID:
        b = sigmoid(b)
    new = tl.trans(tl.load(new_in + at * V + tile, inside, 0.0))
    d_b = tl.load(d_rows + at * V + tile, inside, 0.0)
    tl.store(d_v + at_all * V + out_tile, rounded(b[:, None] * d_b.to(tl.float32), d_v.dtype.element_ty), inside)
    d_lower = tl.where(strict, -product(d_b, new), 0.0)
    tl.store(d_keys + at * C + square, rounded(b[:, None] * d_lower, OPERAND), inside)
    akk = tl.load(keys_in + at * C + square, inside, 0.0).to(tl.float32)
    d_logit = tl.sum(d_lower * akk, 1)
    for part in tl.static_range(PARTS):
        d_logit += tl.load(error_in + (part * num_tokens * H + at) + row * H, valid, 0.0)
    if SIGMOID:
        d_logit *= b * (1.0 - b)
    tl.store(d_beta + at_all + row * ALL, d_logit.to(d_beta.dtype.element_ty), valid)
    d_aqk = product(rounded(tl.load(d_out + at_all * V + out_tile, inside, 0.0).to(tl.float32), OPERAND), new)
    tl.store(d_attend + at * C + square, rounded(tl.where(strict, d_aqk, 0.0), OPERAND), inside)
    tl.store(d_diagonal + at + row * H, tl.sum(tl.where(row[:, None] == row[None, :], d_aqk, 0.0), 1), valid)


@triton.jit
def gradients_kernel(
    q, k, g, a_log, dt_bias, cum_in, q_norm, k_norm, s_out, s_value, s_new, end_in, d_attend, d_keys, d_diagonal_in,
    d_q, d_k, d_g, d_a_log, d_dt_bias,
    cu_seqlens, first_group, group_sequence,
    q_stride, k_stride, g_stride, scale, lower_bound, num_sequences,
    H: tl.constexpr, ALL: tl.constexpr, K: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr,
    GATE: tl.constexpr, NORM: tl.constexpr, OPERAND: tl.constexpr, ANCHOR: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    group, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    n = tl.load(group_sequence + group)
    if n >= num_sequences:
        return
    begin, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    begin += (group - tl.load(first_group + n)) * GROUP * C
    num_chunks = tl.minimum(GROUP, (end - begin + C - 1) // C).to(tl.int32)

    row, channel = tl.arange(0, C), tl.arange(0, K)
    # 64-bit offsets only where they are the same for the whole tile.
    end_row = tl.minimum(tl.arange(1, GROUP + 1) * C, end - begin) - 1
    lowest = tl.load(cum_in + (begin * H + head) * K + (end_row[:, None] * (H * K) + channel[None, :]))
    if (tl.min(lowest) < -2 * ANCHOR * LN2) != FAR:
        return
    wide, out_wide = row[None, :] * (H * K) + channel[:, None], row[None, :] * (ALL * K) + channel[:, None]
    square = row[:, None] * (H * C) + row[None, :]
    tail = tl.load(end_in + (group * H + head) * K + channel)
    sum_bias, sum_a = tl.zeros([K], tl.float32), tl.zeros([K], tl.float32)

    rate, bias = 1.0, tail
    if GATE != 0:
        rate, bias = exponential(tl.load(a_log + head)), tl.load(dt_bias + head * K + channel)

    # The compiler loads ahead what is an operand of a product; the rest is loaded a chunk ahead here.
    last = num_chunks - 1
    d_diagonal_in += (begin + last * C) * H + head + row * H
    next_diagonal = tl.load(d_diagonal_in, row < end - begin - last * C, 0.0)
    for back in range(num_chunks):
        first = begin + (last - back) * C
        at, at_all = first * H + head, first * ALL + head
        rows = tl.minimum(end - first, C).to(tl.int32)
        valid = row < rows
        inside = valid[None, :]
        k_rstd = tl.load(k_norm + at + row * H, valid, 0.0)
        keys = tl.load(k + (first * k_stride + head * K) + (row[None, :] * k_stride + channel[:, None]), inside, 0.0)
        keys = operand(spread(keys, 1.0, C) * k_rstd[None, :], OPERAND).to(tl.float32)
        q_rstd = tl.load(q_norm + at + row * H, valid, 0.0)
        queries = tl.load(q + (first * q_stride + head * K) + (row[None, :] * q_stride + channel[:, None]), inside, 0.0)
        queries = operand(spread(queries, 1.0, C) * q_rstd[None, :], OPERAND).to(tl.float32)
        d_aqk = tl.load(d_attend + at * C + square, valid[:, None], 0.0)
        d_akk = tl.load(d_keys + at * C + square, valid[:, None], 0.0)
        d_diagonal = next_diagonal[None, :]
        d_diagonal_in -= C * H
        next_diagonal = tl.load(d_diagonal_in, row * 0 + back < last, 0.0)

        cum = tl.load(cum_in + at * K + wide, inside, 0.0)
        near_aqk, near_akk = d_aqk, d_akk
        if FAR:
            far = beyond(cum, ANCHOR)
            near_aqk = tl.where(far[:, None], 0.0, d_aqk).to(OPERAND)
            near_akk = tl.where(far[:, None], 0.0, d_akk).to(OPERAND)

        # d_cum with the rounded factors of the products: what a pair adds at one token it takes away at the other.
        up, down = exponential(cum + ANCHOR * LN2), fall(cum, ANCHOR)
        k_down = operand(keys * down, OPERAND)
        q_up = operand(queries * scale * up, OPERAND)
        from_query = product(q_up, near_aqk)
        near = product(k_down, tl.trans(near_aqk))
        near += tl.load(s_out + at * K + wide, inside, 0.0) * 2.0**-ANCHOR
        d_cum = q_up.to(tl.float32) * near
        # The diagonal of Aqk does not decay: left out of what makes dG, where its two parts would have to cancel.
        d_query = up * near + d_diagonal * keys
        d_key = d_diagonal * scale * queries
        if FAR:
            far_q, far_k, far_key = far_gradients(d_aqk, d_akk, queries * scale, keys, cum, far, C, K)
            d_cum += queries * scale * far_q + keys * (far_k - far_key)
            d_query += far_q
            d_key += far_k + far_key
        d_query = unit_columns_gradient(scale * d_query, queries, q_rstd, NORM)
        tl.store(d_q + at_all * K + out_wide, rounded(d_query, d_q.dtype.element_ty), inside)

        k_up = operand(keys * up, OPERAND)
        near = product(k_down, tl.trans(near_akk))
        near += tl.load(s_value + at * K + wide, inside, 0.0) * 2.0**-ANCHOR
        d_cum += k_up.to(tl.float32) * near
        d_key += up * near
        near = product(k_up, near_akk, acc=from_query)
        d_cum -= k_down.to(tl.float32) * near
        d_key += down * near
        to_end = exponential(tl.load(cum_in + (at + (rows - 1) * H) * K + channel)[:, None] - cum)
        grown = tl.load(s_new + at * K + wide, inside, 0.0)
        d_cum -= operand(keys * to_end, OPERAND).to(tl.float32) * grown
        d_key = unit_columns_gradient(d_key + to_end * grown, keys, k_rstd, NORM)
        tl.store(d_k + at_all * K + out_wide, rounded(d_key, d_k.dtype.element_ty), inside)

        d_step = summed(d_cum, row[:, None] >= row[None, :], OPERAND, acc=tl.zeros([K, C], tl.float32) + tail[:, None])
        tail += tl.sum(d_cum, 1)
        gate = tl.load(g + (first * g_stride + head * K) + (row[None, :] * g_stride + channel[:, None]), inside, 0.0)
        d_gate, d_rate = log_decay_gradient(d_step, spread(gate, 1.0, C), rate, bias, lower_bound, GATE)
        d_gate = tl.where(inside, d_gate, 0.0)
        sum_bias += tl.sum(d_gate, 1)
        sum_a += tl.sum(tl.where(inside, d_rate, 0.0), 1)
        tl.store(d_g + at_all * K + out_wide, rounded(d_gate, d_g.dtype.element_ty), inside)

    if GATE != 0:
        tl.store(d_dt_bias + (group * ALL + head) * K + channel, sum_bias)
        tl.store(d_a_log + (group * ALL + head) * K + channel, sum_a)


def gradients(
    x: ChunkInputs, index: ChunkIndex, p: Prepared, d_out: Tensor, d_rows: Tensor, w: Walked, into: Gradients
) -> None:
    """Launches the kernels.

    Args:
        p: prepared with `trace`.  d_out, d_rows: `[T, H, V]`, gradient of the output, and `reverse_scan`'s result.
        into: receives the gradients of `x`. As `d_out`, they may be `x`'s share of the heads of contiguous tensors.
    """
    assert p.trace is not None
    tokens, heads, key_dim = x.q.shape
    value_dim, groups = x.v.shape[-1], len(index.group_sequence)
    d_attend, d_keys = (x.q.new_empty(tokens, heads, CHUNK, dtype=x.operand) for _ in range(2))
    d_diagonal = w.end.new_empty(tokens, heads)
    warps = 8 if x.operand == torch.float32 else 4
    if groups:
        pairs_kernel[(len(index.chunk_sequence) * heads,)](
            x.beta, p.trace.keys, d_out, d_rows, w.new, w.error, into.v, into.beta, d_attend, d_keys, d_diagonal,
            index.cu_seqlens, index.first_chunk, index.chunk_sequence, x.beta.stride(0), index.num_sequences, tokens,
            H=heads, ALL=x.all_heads, V=value_dim, C=CHUNK, PARTS=len(w.error), SIGMOID=x.sigmoid,
            OPERAND=TRITON_DTYPES[x.operand], num_warps=1, num_stages=1,
        )  # fmt: skip
        for far in (False, True):
            gradients_kernel[(groups * heads,)](
                x.q, x.k, x.g, x.gate.a_log, x.gate.dt_bias, p.trace.cum, p.trace.q_rstd, p.trace.k_rstd,
                w.s_out, w.s_value, w.s_new, w.end, d_attend, d_keys, d_diagonal,
                into.q, into.k, into.g, *into.parts,
                index.cu_seqlens, index.first_group, index.group_sequence,
                x.q.stride(0), x.k.stride(0), x.g.stride(0), x.scale, x.gate.lower_bound, index.num_sequences,
                H=heads, ALL=x.all_heads, K=key_dim, C=CHUNK, GROUP=GROUP, GATE=x.gate.kind, NORM=x.norm,
                OPERAND=TRITON_DTYPES[x.operand], ANCHOR=ANCHOR[x.operand], FAR=far, num_warps=warps, num_stages=2,
            )  # fmt: skip
