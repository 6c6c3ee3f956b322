"""Last kernel of the backward pass: the gradients of q, k, v, the gate and beta. One program per group and head.

With S, dS⁺ and v' of `walk`, dv = β db, and dL = −db v'ᵀ below the diagonal, which is what the gradient of
T = (I + L)⁻¹, L = Diag(β) Akk, comes to:

    dAqk = tril(do v'ᵀ)          dAkk = −tril(dv v'ᵀ, -1)        dβ = Σ_v db (v − k⁺ S) + Σ_j dL Akk
    dq⁺  = S do + dAqk k⁻        dk⁺  = −S dv + dAkk k⁻          dk⁻ = dAqkᵀ q⁺ + dAkkᵀ k⁺       dk° = dS⁺ v'
    dq = scale e^G dq⁺           dk = e^G dk⁺ + e^{-G} dk⁻ + e^{G_C−G} dk°
    dG = q dq + k (e^G dk⁺ − e^{-G} dk⁻ − e^{G_C−G} dk°)         dg_t = Σ_{s≥t} dG_s + Σ_v S_end dS_end

The last sum runs over the rest of the group, S_end being the state at its end: so its rounding errors cannot pile up
over a long sequence. Rows whose decay cannot be undone ("far", see `prepare`) take their part of the products with
k⁻, and of dk⁻, by pairwise differences. No sum is left to the order in which programs finish.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltarl.kernels.gpu.index import CHUNK, GROUP, ChunkIndex
from deltarl.kernels.gpu.inputs import ChunkInputs
from deltarl.kernels.gpu.ops import TRITON_DTYPES, pinned, precise_product, product, rounded, sigmoid
from deltarl.kernels.gpu.prepare import ANCHOR, LN2, Prepared, beyond, fall, lowered
from deltarl.kernels.gpu.rows import log_decay_gradient
from deltarl.kernels.gpu.walk import Walked


class Gradients(NamedTuple):
    """In the shapes and dtypes of the inputs; a_log `[H]` and dt_bias `[H*K]` fp32, or None without a gate."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    a_log: Tensor | None
    dt_bias: Tensor | None


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
        weight = tl.where(far[None, :], tl.exp(tl.minimum(cum - at_j, 0.0)), 0.0)
        qk = tl.sum(tl.where(is_j, d_aqk, 0.0), 1)[None, :] * weight
        kk = tl.sum(tl.where(is_j, d_akk, 0.0), 1)[None, :] * weight
        d_q += qk * k_j
        d_k += kk * k_j
        d_key += tl.where(is_j, tl.sum(qk * queries + kk * keys, 1)[:, None], 0.0)
    return d_q, d_k, d_key


@triton.jit
def gradients_kernel(
    q, k, g, beta, a_log, dt_bias, keys_in, cum_in, q_norm, k_norm, d_out, d_rows,
    new_in, s_out, s_value, s_new, error_in, end_in,
    d_q, d_k, d_v, d_g, d_beta, d_a_log, d_dt_bias,
    cu_seqlens, first_group, group_sequence,
    q_stride, k_stride, g_stride, beta_stride, scale, lower_bound, num_sequences,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr,
    GATE: tl.constexpr, NORM: tl.constexpr, SIGMOID: tl.constexpr, OPERAND: tl.constexpr, ANCHOR: tl.constexpr,
):  # fmt: skip
    group, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    n = tl.load(group_sequence + group)
    if n >= num_sequences:
        return
    begin, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    begin += (group - tl.load(first_group + n)) * GROUP * C
    num_chunks = tl.minimum(GROUP, (end - begin + C - 1) // C).to(tl.int32)

    row, channel, value = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    # 64-bit offsets only where they are the same for the whole tile.
    wide, tall = row[None, :] * (H * K) + channel[:, None], row[None, :] * (H * V) + value[:, None]
    square = row[:, None] * (H * C) + row[None, :]
    strict, later = row[:, None] > row[None, :], row[:, None] >= row[None, :]
    tail = tl.load(end_in + (group * H + head) * K + channel)
    sum_bias, sum_a = tl.zeros([K], tl.float32), tl.zeros([K], tl.float32)

    for back in range(num_chunks):
        first = begin + (num_chunks - 1 - back) * C
        at = first * H + head
        valid = row < end - first
        inside = valid[None, :]
        b = tl.load(beta + first * beta_stride + head + row * beta_stride, valid, 0.0).to(tl.float32)
        if SIGMOID:
            b = sigmoid(b)
        new = tl.load(new_in + at * V + tall, inside, 0.0)
        d_o = rounded(tl.load(d_out + at * V + tall, inside, 0.0).to(tl.float32), OPERAND)
        d_b = tl.load(d_rows + at * V + tall, inside, 0.0)
        d_aqk = product(tl.trans(d_o), new)
        d_lower = tl.where(strict, -product(tl.trans(d_b), new), 0.0)
        tl.store(d_v + at * V + tall, rounded(b[None, :] * d_b.to(tl.float32), d_v.dtype.element_ty), inside)
        akk = tl.load(keys_in + at * C + square, valid[:, None], 0.0).to(tl.float32)
        d_logit = tl.load(error_in + at + row * H, valid, 0.0) + tl.sum(d_lower * akk, 1)
        if SIGMOID:
            d_logit *= b * (1.0 - b)
        tl.store(d_beta + at + row * H, d_logit.to(d_beta.dtype.element_ty), valid)

        cum = pinned(tl.load(cum_in + at * K + wide, inside, 0.0))
        # The diagonal of Aqk does not decay: left out of what makes dG, where its two parts would have to cancel.
        d_diagonal = tl.sum(tl.where(row[:, None] == row[None, :], d_aqk, 0.0), 0)[None, :]
        d_aqk = tl.where(strict, d_aqk, 0.0)
        d_akk = b[:, None] * d_lower
        far = beyond(cum, ANCHOR)
        near_aqk = rounded(tl.where(far[:, None], 0.0, d_aqk), OPERAND)
        near_akk = rounded(tl.where(far[:, None], 0.0, d_akk), OPERAND)

        k_rstd = tl.load(k_norm + at + row * H, valid, 0.0)
        keys = tl.load(k + (first * k_stride + head * K) + (row[None, :] * k_stride + channel[:, None]), inside, 0.0)
        keys = pinned(rounded(keys.to(tl.float32) * k_rstd[None, :], OPERAND).to(tl.float32))
        q_rstd = tl.load(q_norm + at + row * H, valid, 0.0)
        queries = tl.load(q + (first * q_stride + head * K) + (row[None, :] * q_stride + channel[:, None]), inside, 0.0)
        queries = pinned(rounded(queries.to(tl.float32) * q_rstd[None, :], OPERAND).to(tl.float32))
        up, down = pinned(tl.exp(cum + ANCHOR * LN2)), pinned(fall(cum, ANCHOR))
        k_up, q_up = rounded(keys * up, OPERAND), rounded(queries * scale * up, OPERAND)
        k_down = rounded(keys * down, OPERAND)

        # d_cum with the rounded factors of the products: what a pair adds at one token it takes away at the other.
        d_query = tl.load(s_out + at * K + wide, inside, 0.0).to(tl.float32)
        d_cum = lowered(q_up, ANCHOR, OPERAND).to(tl.float32) * d_query
        near = product(k_down, tl.trans(near_aqk))
        d_cum += q_up.to(tl.float32) * near
        d_query = up * (2.0**-ANCHOR) * d_query + up * near
        d_key = tl.load(s_value + at * K + wide, inside, 0.0).to(tl.float32)
        d_cum += lowered(k_up, ANCHOR, OPERAND).to(tl.float32) * d_key
        near = product(k_down, tl.trans(near_akk))
        d_cum += k_up.to(tl.float32) * near
        d_key = up * (2.0**-ANCHOR) * d_key + up * near
        near = product(k_up, near_akk, acc=product(q_up, near_aqk))
        d_cum -= k_down.to(tl.float32) * near
        d_key += down * near
        if tl.max(tl.where(far, 1, 0), 0) > 0:
            far_q, far_k, far_key = far_gradients(d_aqk, d_akk, queries * scale, keys, cum, far, C, K)
            d_cum += queries * scale * far_q + keys * (far_k - far_key)
            d_query += far_q
            d_key += far_k + far_key
        d_query = unit_columns_gradient(scale * (d_query + d_diagonal * keys), queries, q_rstd, NORM)
        tl.store(d_q + at * K + wide, rounded(d_query, d_q.dtype.element_ty), inside)

        last = tl.minimum(end - first, C) - 1
        to_end = pinned(tl.exp(tl.load(cum_in + (at + last * H) * K + channel)[:, None] - cum))
        grown = pinned(tl.load(s_new + at * K + wide, inside, 0.0))
        d_cum -= rounded(keys * to_end, OPERAND).to(tl.float32) * grown
        d_key += d_diagonal * scale * queries + to_end * grown
        d_key = unit_columns_gradient(d_key, keys, k_rstd, NORM)
        tl.store(d_k + at * K + wide, rounded(d_key, d_k.dtype.element_ty), inside)

        d_step = precise_product(d_cum, tl.where(later, 1.0, 0.0), OPERAND) + tail[:, None]
        tail += tl.sum(d_cum, 1)
        gate = tl.load(g + (first * g_stride + head * K) + (row[None, :] * g_stride + channel[:, None]), inside, 0.0)
        d_gate, d_rate = log_decay_gradient(
            d_step, gate.to(tl.float32), a_log, dt_bias, lower_bound, head, GATE, K
        )
        d_gate = tl.where(inside, d_gate, 0.0)
        sum_bias += tl.sum(d_gate, 1)
        sum_a += tl.sum(tl.where(inside, d_rate, 0.0), 1)
        tl.store(d_g + at * K + wide, rounded(d_gate, d_g.dtype.element_ty), inside)

    if GATE != 0:
        tl.store(d_dt_bias + (group * H + head) * K + channel, sum_bias)
        tl.store(d_a_log + (group * H + head) * K + channel, sum_a)


def gradients(
    x: ChunkInputs, index: ChunkIndex, p: Prepared, d_out: Tensor, d_rows: Tensor, w: Walked
) -> Gradients:
    """Launches the kernel.

    Args:
        p: prepared with `trace`.  d_out, d_rows: `[T, H, V]`, gradient of the output, and `reverse_scan`'s result.
    """
    assert p.trace is not None
    heads, key_dim = x.q.shape[1:]
    value_dim, groups = x.v.shape[-1], len(index.group_sequence)
    d_q, d_k, d_v, d_g, d_beta = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in x.tensors().values())
    sums = [w.end.new_zeros(groups, heads, key_dim) if x.gate.kind else None for _ in range(2)]
    if groups:
        gradients_kernel[(groups * heads,)](
            x.q, x.k, x.g, x.beta, x.gate.a_log, x.gate.dt_bias, *p.trace, d_out, d_rows, *w,
            d_q, d_k, d_v, d_g, d_beta, *sums,
            index.cu_seqlens, index.first_group, index.group_sequence,
            x.q.stride(0), x.k.stride(0), x.g.stride(0), x.beta.stride(0),
            x.scale, x.gate.lower_bound, index.num_sequences,
            H=heads, K=key_dim, V=value_dim, C=CHUNK, GROUP=GROUP,
            GATE=x.gate.kind, NORM=x.norm, SIGMOID=x.sigmoid,
            OPERAND=TRITON_DTYPES[x.operand], ANCHOR=ANCHOR[x.operand], num_warps=8, num_stages=1,
        )  # fmt: skip
    d_a_log, d_dt_bias = sums
    return Gradients(
        d_q, d_k, d_v, d_g, d_beta,
        None if d_a_log is None else d_a_log.sum((0, 2)),
        None if d_dt_bias is None else d_dt_bias.sum(0).flatten(),
    )  # fmt: skip
