"""Second kernel of the backward pass: the gradients of q, k, v, the gate and beta. One program per group and head.

A group is `GROUP` chunks. From the state before it and the gradient of the state after it, both checkpoints of the two
scans, a program walks forward over its chunks and then back. With dv = β db (`reverse_scan`) and dL = −db v'ᵀ below the
diagonal, which is what the gradient of T = (I + L)⁻¹, L = Diag(β) Akk, comes to:

    dAqk = tril(do v'ᵀ)          dAkk = −tril(dv v'ᵀ, -1)        dβ = Σ_v db (v − k⁺ S) + Σ_j dL Akk
    dq⁺  = do Sᵀ + dAqk k⁻       dk⁺  = −dv Sᵀ + dAkk k⁻         dk⁻ = dAqkᵀ q⁺ + dAkkᵀ k⁺       dk° = v' dS⁺ᵀ
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
from deltarl.kernels.gpu.ops import TRITON_DTYPES, precise_product, product, rounded, sigmoid
from deltarl.kernels.gpu.prepare import ANCHOR, LN2, Prepared, beyond, fall, lowered
from deltarl.kernels.gpu.rows import log_decay_gradient


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
    q, k, v, g, beta, a_log, dt_bias, inverse, keys_in, cum_in, q_norm, k_norm, d_out, d_rows, before, after,
    d_q, d_k, d_v, d_g, d_beta, d_a_log, d_dt_bias, kept_new, kept_k, kept_g,
    cu_seqlens, first_group, group_sequence,
    q_stride, k_stride, v_stride, g_stride, beta_stride, scale, lower_bound, num_sequences,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr,
    GATE: tl.constexpr, NORM: tl.constexpr, SIGMOID: tl.constexpr, OPERAND: tl.constexpr, ANCHOR: tl.constexpr,
):  # fmt: skip
    group, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    n = tl.load(group_sequence + group)
    if n >= num_sequences:
        return
    begin, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    begin += (group - tl.load(first_group + n)) * GROUP * C

    row, channel, value = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    # 64-bit offsets only where they are the same for the whole tile.
    wide, tall = row[None, :] * (H * K) + channel[:, None], row[None, :] * (H * V) + value[:, None]
    square = row[:, None] * (H * C) + row[None, :]
    q_tile, k_tile = row[None, :] * q_stride + channel[:, None], row[None, :] * k_stride + channel[:, None]
    v_tile, g_tile = row[None, :] * v_stride + value[:, None], row[None, :] * g_stride + channel[:, None]
    state_tile = value[:, None] * K + channel[None, :]
    home = (group * H + head) * K * V
    state = tl.load(before + home + state_tile).to(tl.float32)
    num_chunks = tl.minimum(GROUP, (end - begin + C - 1) // C).to(tl.int32)
    strict = row[:, None] > row[None, :]

    for c in range(num_chunks):
        first = begin + c * C
        at = first * H + head
        valid = row < end - first
        inside = valid[None, :]
        cum = tl.load(cum_in + at * K + wide, inside, 0.0)
        keys = tl.load(k + (first * k_stride + head * K) + k_tile, inside, 0.0).to(tl.float32)
        keys = rounded(keys * tl.load(k_norm + at + row * H, valid, 0.0)[None, :], OPERAND).to(tl.float32)
        q_rstd = tl.load(q_norm + at + row * H, valid, 0.0)
        queries = tl.load(q + (first * q_stride + head * K) + q_tile, inside, 0.0).to(tl.float32)
        queries = rounded(queries * q_rstd[None, :], OPERAND).to(tl.float32)
        up, down = tl.exp(cum + ANCHOR * LN2), fall(cum, ANCHOR)
        k_up = rounded(keys * up, OPERAND)
        k_in = lowered(k_up, ANCHOR, OPERAND)
        b = tl.load(beta + first * beta_stride + head + row * beta_stride, valid, 0.0).to(tl.float32)
        if SIGMOID:
            b = sigmoid(b)
        solve = tl.load(inverse + at * C + square, valid[:, None], 0.0)
        d_o = rounded(tl.load(d_out + at * V + tall, inside, 0.0).to(tl.float32), OPERAND)
        d_b = tl.load(d_rows + at * V + tall, inside, 0.0)

        left = rounded(state, OPERAND)
        error = tl.load(v + (first * v_stride + head * V) + v_tile, inside, 0.0).to(tl.float32) - product(left, k_in)
        new = rounded(product(rounded(b[None, :] * error, OPERAND), tl.trans(solve)), OPERAND)
        tl.store(kept_new + at * V + tall, new, inside)
        d_aqk = product(tl.trans(d_o), new)
        d_lower = tl.where(strict, -product(tl.trans(d_b), new), 0.0)
        akk = tl.load(keys_in + at * C + square, valid[:, None], 0.0).to(tl.float32)
        d_logit = tl.sum(d_b.to(tl.float32) * error, 0) + tl.sum(d_lower * akk, 1)
        if SIGMOID:
            d_logit *= b * (1.0 - b)
        tl.store(d_beta + at + row * H, d_logit.to(d_beta.dtype.element_ty), valid)
        d_value = b[None, :] * d_b.to(tl.float32)
        tl.store(d_v + at * V + tall, rounded(d_value, d_v.dtype.element_ty), inside)

        # The diagonal of Aqk does not decay: left out of what makes dG, where its two parts would have to cancel.
        d_diagonal = tl.sum(tl.where(row[:, None] == row[None, :], d_aqk, 0.0), 0)[None, :]
        d_aqk = tl.where(strict, d_aqk, 0.0)
        d_akk = b[:, None] * d_lower
        far = beyond(cum, ANCHOR)
        near_aqk = rounded(tl.where(far[:, None], 0.0, d_aqk), OPERAND)
        near_akk = rounded(tl.where(far[:, None], 0.0, d_akk), OPERAND)
        k_down, q_up = rounded(keys * down, OPERAND), rounded(queries * scale * up, OPERAND)
        q_in = lowered(q_up, ANCHOR, OPERAND)
        d_query = product(tl.trans(left), d_o)
        d_key_up = product(tl.trans(left), rounded(-d_value, OPERAND))
        # With the rounded factors of the products, so that what a pair adds at one token it takes away at the other.
        d_cum = q_in.to(tl.float32) * d_query + k_in.to(tl.float32) * d_key_up
        d_query, d_key_up = d_query * (up * 2.0**-ANCHOR), d_key_up * (up * 2.0**-ANCHOR)
        near = product(k_down, tl.trans(near_aqk))
        d_cum += q_up.to(tl.float32) * near
        d_query += up * near
        near = product(k_down, tl.trans(near_akk))
        d_cum += k_up.to(tl.float32) * near
        d_key_up += up * near
        d_key_down = product(k_up, near_akk, acc=product(q_up, near_aqk))
        d_cum -= k_down.to(tl.float32) * d_key_down
        d_key_down *= down
        if tl.max(tl.where(far, 1, 0), 0) > 0:
            far_q, far_k, far_key = far_gradients(d_aqk, d_akk, queries * scale, keys, cum, far, C, K)
            d_cum += queries * scale * far_q + keys * (far_k - far_key)
            d_query += far_q
            d_key_up += far_k
            d_key_down += far_key
        tl.store(kept_g + at * K + wide, d_cum, inside)
        d_key = d_key_up + d_key_down + d_diagonal * scale * queries
        tl.store(kept_k + at * K + wide, rounded(d_key, OPERAND), inside)
        d_query = scale * (d_query + d_diagonal * keys)
        d_query = unit_columns_gradient(d_query, queries, q_rstd, NORM)
        tl.store(d_q + at * K + wide, rounded(d_query, d_q.dtype.element_ty), inside)
        last = tl.minimum(end - first, C) - 1
        at_end = tl.load(cum_in + (at + last * H) * K + channel)
        k_end = rounded(keys * tl.exp(at_end[:, None] - cum), OPERAND)
        state = product(new, tl.trans(k_end), acc=state * tl.exp(at_end)[None, :])

    d_state = tl.load(after + home + state_tile).to(tl.float32)
    tail = tl.sum(state * d_state, 0)
    sum_bias, sum_a = tl.zeros([K], tl.float32), tl.zeros([K], tl.float32)
    tl.debug_barrier()  # what the first loop kept, other threads of the program read in the second

    for back in range(num_chunks):
        first = begin + (num_chunks - 1 - back) * C
        at = first * H + head
        valid = row < end - first
        inside = valid[None, :]
        cum = tl.load(cum_in + at * K + wide, inside, 0.0)
        last = tl.minimum(end - first, C) - 1
        at_end = tl.load(cum_in + (at + last * H) * K + channel)
        k_rstd = tl.load(k_norm + at + row * H, valid, 0.0)
        keys = tl.load(k + (first * k_stride + head * K) + k_tile, inside, 0.0).to(tl.float32)
        keys = rounded(keys * k_rstd[None, :], OPERAND).to(tl.float32)
        new = tl.load(kept_new + at * V + tall, inside, 0.0)
        to_end = tl.exp(at_end[:, None] - cum)
        d_key_end = product(tl.trans(rounded(d_state, OPERAND)), new)
        d_cum = tl.load(kept_g + at * K + wide, inside, 0.0) - rounded(keys * to_end, OPERAND).to(tl.float32) * d_key_end
        later = tl.where(row[:, None] >= row[None, :], 1.0, 0.0)
        d_step = precise_product(d_cum, later, OPERAND) + tail[:, None]
        tail += tl.sum(d_cum, 1)
        gate = tl.load(g + (first * g_stride + head * K) + g_tile, inside, 0.0).to(tl.float32)
        d_gate, d_rate = log_decay_gradient(d_step, gate, a_log, dt_bias, lower_bound, head, GATE, K)
        d_gate = tl.where(inside, d_gate, 0.0)
        sum_bias += tl.sum(d_gate, 1)
        sum_a += tl.sum(tl.where(inside, d_rate, 0.0), 1)
        tl.store(d_g + at * K + wide, rounded(d_gate, d_g.dtype.element_ty), inside)
        d_key = tl.load(kept_k + at * K + wide, inside, 0.0).to(tl.float32) + to_end * d_key_end
        d_key = unit_columns_gradient(d_key, keys, k_rstd, NORM)
        tl.store(d_k + at * K + wide, rounded(d_key, d_k.dtype.element_ty), inside)

        queries = tl.load(q + (first * q_stride + head * K) + q_tile, inside, 0.0).to(tl.float32)
        queries = rounded(queries * tl.load(q_norm + at + row * H, valid, 0.0)[None, :], OPERAND).to(tl.float32)
        up = tl.exp(cum)
        b = tl.load(beta + first * beta_stride + head + row * beta_stride, valid, 0.0).to(tl.float32)
        if SIGMOID:
            b = sigmoid(b)
        d_o = rounded(tl.load(d_out + at * V + tall, inside, 0.0).to(tl.float32), OPERAND)
        d_b = tl.load(d_rows + at * V + tall, inside, 0.0).to(tl.float32)
        d_state = product(d_o, tl.trans(rounded(queries * scale * up, OPERAND)), acc=d_state * tl.exp(at_end)[None, :])
        d_state = product(rounded(-b[None, :] * d_b, OPERAND), tl.trans(rounded(keys * up, OPERAND)), acc=d_state)

    if GATE != 0:
        tl.store(d_dt_bias + (group * H + head) * K + channel, sum_bias)
        tl.store(d_a_log + (group * H + head) * K + channel, sum_a)


def gradients(
    x: ChunkInputs,
    index: ChunkIndex,
    p: Prepared,
    d_out: Tensor,
    d_rows: Tensor,
    before: Tensor,
    after: Tensor,
) -> Gradients:
    """Launches the kernel.

    Args:
        p: prepared with `trace`.  d_out, d_rows: `[T, H, V]`, gradient of the output, and `reverse_scan`'s result.
        before, after: `[NG, H, V, K]` checkpoints of `scan` and `reverse_scan`.
    """
    assert p.trace is not None
    heads, key_dim = x.q.shape[1:]
    value_dim, groups = x.v.shape[-1], len(index.group_sequence)
    d_q, d_k, d_v, d_g, d_beta = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in x.tensors().values())
    kept_k = d_k if d_k.dtype == x.operand else torch.empty_like(d_k, dtype=x.operand)
    kept_g = torch.empty_like(d_k, dtype=torch.float32)
    kept_new = torch.empty_like(d_v, dtype=x.operand)
    sums = [kept_g.new_zeros(groups, heads, key_dim) if x.gate.kind else None for _ in range(2)]
    if groups:
        gradients_kernel[(groups * heads,)](
            x.q, x.k, x.v, x.g, x.beta, x.gate.a_log, x.gate.dt_bias, p.inverse, *p.trace, d_out, d_rows, before, after,
            d_q, d_k, d_v, d_g, d_beta, *sums, kept_new, kept_k, kept_g,
            index.cu_seqlens, index.first_group, index.group_sequence,
            x.q.stride(0), x.k.stride(0), x.v.stride(0), x.g.stride(0), x.beta.stride(0),
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
