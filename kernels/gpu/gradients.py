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
from deltarl.kernels.gpu.ops import TRITON_DTYPES, product, rounded, sigmoid
from deltarl.kernels.gpu.prepare import LIMIT, Prepared
from deltarl.kernels.gpu.rows import cumulative, log_decay, log_decay_gradient, unit_rows


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
def unit_rows_gradient(d, unit, rstd, NORM: tl.constexpr):
    """Gradient before L2 normalisation: `rstd (d − unit (unit · d))`."""
    if NORM:
        d = rstd[:, None] * (d - unit * tl.sum(unit * d, 1)[:, None])
    return d


@triton.jit
def far_gradients(
    d_aqk, d_akk, q_scaled, k, cum, far, C: tl.constexpr, K: tl.constexpr
):  # fmt: skip
    """The far rows' part of `Σ_j dA_ij k_j e^{G_i−G_j}` for q and k, and of dk_j `Σ_i e^{G_i−G_j} (dA_ij x_i)`."""
    row = tl.arange(0, C)
    d_q, d_k, d_key = tl.zeros([C, K], tl.float32), tl.zeros([C, K], tl.float32), tl.zeros([C, K], tl.float32)
    for j in range(C):
        is_j = row[:, None] == j
        at_j = tl.sum(tl.where(is_j, cum, 0.0), 0)[None, :]
        k_j = tl.sum(tl.where(is_j, k, 0.0), 0)[None, :]
        weight = tl.where(far[:, None], tl.exp(tl.minimum(cum - at_j, 0.0)), 0.0)
        qk = tl.sum(tl.where(row[None, :] == j, d_aqk, 0.0), 1)[:, None] * weight
        kk = tl.sum(tl.where(row[None, :] == j, d_akk, 0.0), 1)[:, None] * weight
        d_q += qk * k_j
        d_k += kk * k_j
        d_key += tl.where(is_j, tl.sum(qk * q_scaled + kk * k, 0)[None, :], 0.0)
    return d_q, d_k, d_key


@triton.jit
def gradients_kernel(
    q, k, v, g, beta, a_log, dt_bias, inverse, keys, d_out, d_rows, before, after,
    d_q, d_k, d_v, d_g, d_beta, d_a_log, d_dt_bias, kept_new, kept_k, kept_g,
    cu_seqlens, first_group, group_sequence,
    q_stride, k_stride, v_stride, g_stride, beta_stride, scale, lower_bound, num_sequences,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr,
    GATE: tl.constexpr, NORM: tl.constexpr, SIGMOID: tl.constexpr, OPERAND: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    group, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    n = tl.load(group_sequence + group)
    if n >= num_sequences:
        return
    begin, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    begin += (group - tl.load(first_group + n)) * GROUP * C

    row, channel, value = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    within, within_v = head * K + channel[None, :], head * V + value[None, :]
    state_tile = (group * H + head) * K * V + value[:, None] * K + channel[None, :]
    state = tl.load(before + state_tile).to(tl.float32)
    num_chunks = tl.minimum(GROUP, (end - begin + C - 1) // C).to(tl.int32)
    lower_half, strict = row[:, None] >= row[None, :], row[:, None] > row[None, :]

    for c in range(num_chunks):
        token = begin + c * C + row
        valid = token < end
        inside = valid[:, None]
        at = token * H + head
        wide, tall = at[:, None] * K + channel[None, :], at[:, None] * V + value[None, :]
        q_row, q_rstd = unit_rows(tl.load(q + token[:, None] * q_stride + within, inside, 0.0), NORM, C, K, OPERAND)
        k_row, _ = unit_rows(tl.load(k + token[:, None] * k_stride + within, inside, 0.0), NORM, C, K, OPERAND)
        gate = tl.load(g + token[:, None] * g_stride + within, inside, 0.0).to(tl.float32)
        step = tl.where(inside, log_decay(gate, a_log, dt_bias, lower_bound, head, GATE, K), 0.0)
        cum = cumulative(step, tl.zeros([C, K], tl.float32), C)
        up, down = tl.exp(cum), tl.exp(tl.minimum(-cum, LIMIT))
        k_up, q_up = rounded(k_row * up, OPERAND), rounded(q_row * scale * up, OPERAND)
        k_down = rounded(k_row * down, OPERAND)
        at_end = tl.sum(tl.where((row == C - 1)[:, None], cum, 0.0), 0)
        k_end = rounded(k_row * tl.exp(at_end[None, :] - cum), OPERAND)
        b = tl.load(beta + token * beta_stride + head, valid, 0.0).to(tl.float32)
        if SIGMOID:
            b = sigmoid(b)
        solve = tl.load(inverse + at[:, None] * C + row[None, :], inside, 0.0)
        akk = tl.load(keys + at[:, None] * C + row[None, :], inside, 0.0).to(tl.float32)
        v_row = tl.load(v + token[:, None] * v_stride + within_v, inside, 0.0).to(tl.float32)
        d_o = rounded(tl.load(d_out + tall, inside, 0.0).to(tl.float32), OPERAND)
        d_b = tl.load(d_rows + tall, inside, 0.0).to(tl.float32)

        left = rounded(state, OPERAND)
        error = v_row - tl.trans(product(left, tl.trans(k_up)))
        new = rounded(product(solve, rounded(b[:, None] * error, OPERAND)), OPERAND)
        d_value = b[:, None] * d_b
        d_value_op = rounded(d_value, OPERAND)
        d_aqk = tl.where(lower_half, product(d_o, tl.trans(new)), 0.0)
        d_lower = tl.where(strict, -product(rounded(d_b, OPERAND), tl.trans(new)), 0.0)
        d_akk = b[:, None] * d_lower
        d_logit = tl.sum(d_b * error, 1) + tl.sum(d_lower * akk, 1)
        if SIGMOID:
            d_logit *= b * (1.0 - b)
        tl.store(d_beta + at, d_logit.to(d_beta.dtype.element_ty), valid)
        tl.store(d_v + tall, rounded(d_value, d_v.dtype.element_ty), inside)

        far = tl.max(tl.where(cum < -LIMIT, 1, 0), 1) > 0
        any_far = tl.max(tl.where(far, 1, 0), 0) > 0
        near_aqk = rounded(tl.where(far[:, None], 0.0, d_aqk), OPERAND)
        near_akk = rounded(tl.where(far[:, None], 0.0, d_akk), OPERAND)
        d_q_row = scale * up * product(near_aqk, k_down, acc=product(d_o, left))
        d_k_row = up * product(near_akk, k_down, acc=-product(d_value_op, left))
        d_k_key = product(tl.trans(near_akk), k_up, acc=product(tl.trans(near_aqk), q_up)) * down
        if any_far:
            far_q, far_k, far_key = far_gradients(d_aqk, d_akk, q_row * scale, k_row, cum, far, C, K)
            d_q_row += scale * far_q
            d_k_row += far_k
            d_k_key += far_key
        tl.store(kept_g + wide, q_row * d_q_row + k_row * (d_k_row - d_k_key), inside)
        tl.store(kept_k + wide, (d_k_row + d_k_key).to(kept_k.dtype.element_ty), inside)
        tl.store(kept_new + tall, new, inside)
        d_q_row = unit_rows_gradient(d_q_row, q_row, q_rstd, NORM)
        tl.store(d_q + wide, rounded(d_q_row, d_q.dtype.element_ty), inside)
        state = product(tl.trans(new), k_end, acc=state * tl.exp(at_end)[None, :])

    d_state = tl.load(after + state_tile).to(tl.float32)
    tail = tl.sum(state * d_state, 0)
    sum_bias, sum_a = tl.zeros([K], tl.float32), tl.zeros([K], tl.float32)
    tl.debug_barrier()

    for back in range(num_chunks):
        token = begin + (num_chunks - 1 - back) * C + row
        valid = token < end
        inside = valid[:, None]
        at = token * H + head
        wide, tall = at[:, None] * K + channel[None, :], at[:, None] * V + value[None, :]
        q_row, _ = unit_rows(tl.load(q + token[:, None] * q_stride + within, inside, 0.0), NORM, C, K, OPERAND)
        k_row, k_rstd = unit_rows(tl.load(k + token[:, None] * k_stride + within, inside, 0.0), NORM, C, K, OPERAND)
        gate = tl.load(g + token[:, None] * g_stride + within, inside, 0.0).to(tl.float32)
        step = tl.where(inside, log_decay(gate, a_log, dt_bias, lower_bound, head, GATE, K), 0.0)
        cum = cumulative(step, tl.zeros([C, K], tl.float32), C)
        up = tl.exp(cum)
        k_up, q_up = rounded(k_row * up, OPERAND), rounded(q_row * scale * up, OPERAND)
        at_end = tl.sum(tl.where((row == C - 1)[:, None], cum, 0.0), 0)
        b = tl.load(beta + token * beta_stride + head, valid, 0.0).to(tl.float32)
        if SIGMOID:
            b = sigmoid(b)
        d_o = rounded(tl.load(d_out + tall, inside, 0.0).to(tl.float32), OPERAND)
        d_b = tl.load(d_rows + tall, inside, 0.0).to(tl.float32)
        new = tl.load(kept_new + tall, inside, 0.0)

        d_k_end = tl.exp(at_end[None, :] - cum) * product(new, rounded(d_state, OPERAND))
        d_k_row = tl.load(kept_k + wide, inside, 0.0).to(tl.float32) + d_k_end
        d_cum = tl.load(kept_g + wide, inside, 0.0) - k_row * d_k_end
        d_step = tl.cumsum(d_cum, 0, reverse=True) + tail[None, :]
        tail += tl.sum(d_cum, 0)
        d_gate, d_rate = log_decay_gradient(d_step, gate, a_log, dt_bias, lower_bound, head, GATE, K)
        d_gate = tl.where(inside, d_gate, 0.0)
        sum_bias += tl.sum(d_gate, 0)
        sum_a += tl.sum(tl.where(inside, d_rate, 0.0), 0)
        tl.store(d_g + wide, rounded(d_gate, d_g.dtype.element_ty), inside)
        d_k_row = unit_rows_gradient(d_k_row, k_row, k_rstd, NORM)
        tl.store(d_k + wide, rounded(d_k_row, d_k.dtype.element_ty), inside)
        d_state = product(tl.trans(d_o), q_up, acc=d_state * tl.exp(at_end)[None, :])
        d_state = product(tl.trans(rounded(-b[:, None] * d_b, OPERAND)), k_up, acc=d_state)

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
        p: prepared with `keys`.  d_out, d_rows: `[T, H, V]`, gradient of the output, and `reverse_scan`'s result.
        before, after: `[NG, H, V, K]` checkpoints of `scan` and `reverse_scan`.
    """
    tokens, heads, key_dim = x.q.shape
    value_dim, groups = x.v.shape[-1], len(index.group_sequence)
    d_q, d_k, d_v, d_g, d_beta = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in x.tensors().values())
    kept_k = d_k if d_k.dtype == x.operand else torch.empty_like(d_k, dtype=x.operand)
    kept_g = torch.empty_like(d_k, dtype=torch.float32)
    kept_new = torch.empty_like(d_v, dtype=x.operand)
    sums = [kept_g.new_zeros(groups, heads, key_dim) if x.gate.kind else None for _ in range(2)]
    if groups:
        gradients_kernel[(groups * heads,)](
            x.q, x.k, x.v, x.g, x.beta, x.gate.a_log, x.gate.dt_bias, p.inverse, p.keys, d_out, d_rows, before, after,
            d_q, d_k, d_v, d_g, d_beta, *sums, kept_new, kept_k, kept_g,
            index.cu_seqlens, index.first_group, index.group_sequence,
            x.q.stride(0), x.k.stride(0), x.v.stride(0), x.g.stride(0), x.beta.stride(0),
            x.scale, x.gate.lower_bound, index.num_sequences,
            H=heads, K=key_dim, V=value_dim, C=CHUNK, GROUP=GROUP,
            GATE=x.gate.kind, NORM=x.norm, SIGMOID=x.sigmoid,
            OPERAND=TRITON_DTYPES[x.operand], LIMIT=LIMIT[x.operand], num_warps=8, num_stages=1,
        )  # fmt: skip
    d_a_log, d_dt_bias = sums
    return Gradients(
        d_q, d_k, d_v, d_g, d_beta,
        None if d_a_log is None else d_a_log.sum((0, 2)),
        None if d_dt_bias is None else d_dt_bias.sum(0).flatten(),
    )  # fmt: skip
