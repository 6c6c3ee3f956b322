"""Second part of the backward pass: all that needs a chunk's state or the gradient of it.

A group is `GROUP` chunks. From the state before it and the gradient of the state after it, the checkpoints of the two
scans, one kernel walks forward over its chunks and another back. With S the state before a chunk, dS⁺ the gradient of
the state after it and dv = β db (`reverse_scan`), they leave

    v' = T β (v − k⁺ S)      S do      −S dv      dS⁺ v'      Σ_v db (v − k⁺ S)      Σ_v S_end dS_end (end of the group)

for the last kernels, `gradients`, which need no state. Forward, one program per group and head holds all of S, since v'
sums over K and S do over V. Back, no sum is over K: programs of fewer channels, more of which fit on a multiprocessor.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltarl.kernels.gpu.index import CHUNK, GROUP, ChunkIndex
from deltarl.kernels.gpu.inputs import ChunkInputs
from deltarl.kernels.gpu.ops import TRITON_DTYPES, product, rounded, sigmoid
from deltarl.kernels.gpu.prepare import Prepared


class Walked(NamedTuple):
    """Per token, in the operand dtype: new v' `[T, H, V]`, s_out and s_value S do and −S dv `[T, H, K]`.

    s_new: dS⁺ v' `[T, H, K]` fp32, since all but its rounding may cancel against `end`.
    error: Σ_v db (v − k⁺ S) `[T, H]` fp32.  end: Σ_v S_end dS_end `[NG, H, K]` fp32.
    """

    new: Tensor
    s_out: Tensor
    s_value: Tensor
    s_new: Tensor
    error: Tensor
    end: Tensor


@triton.jit
def walk_kernel(
    v, beta, k_in, k_out, inverse, decay, d_out, d_rows, before, after,
    new_out, s_out, s_value, error_out, end_out,
    cu_seqlens, first_chunk, first_group, group_sequence, v_stride, beta_stride, num_sequences,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr,
    SIGMOID: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    group, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    n = tl.load(group_sequence + group)
    if n >= num_sequences:
        return
    ordinal = group - tl.load(first_group + n)
    begin, end = tl.load(cu_seqlens + n) + ordinal * GROUP * C, tl.load(cu_seqlens + n + 1)
    chunk0 = tl.load(first_chunk + n) + ordinal * GROUP
    num_chunks = tl.minimum(GROUP, (end - begin + C - 1) // C).to(tl.int32)

    row, channel, value = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    # 64-bit offsets only where they are the same for the whole tile.
    wide, tall = row[:, None] * (H * K) + channel[None, :], row[None, :] * (H * V) + value[:, None]
    square, across = row[:, None] * (H * C) + row[None, :], row[None, :] * (H * K) + channel[:, None]
    state_tile = (group * H + head) * K * V + (value[:, None] * K + channel[None, :])
    state = tl.load(before + state_tile).to(tl.float32)
    for c in range(num_chunks):
        first = begin + c * C
        at = first * H + head
        valid = row < end - first
        inside = valid[None, :]
        k_up = tl.load(k_in + at * K + wide, valid[:, None], 0.0)
        k_end = tl.load(k_out + at * K + wide, valid[:, None], 0.0)
        solve = tl.load(inverse + at * C + square, valid[:, None], 0.0)
        at_end = tl.load(decay + ((chunk0 + c) * H + head) * K + channel)
        b = tl.load(beta + first * beta_stride + head + row * beta_stride, valid, 0.0).to(tl.float32)
        if SIGMOID:
            b = sigmoid(b)
        left = rounded(state, OPERAND)
        error = tl.load(v + (first * v_stride + head * V) + (row[None, :] * v_stride + value[:, None]), inside, 0.0)
        error = error.to(tl.float32) - product(left, tl.trans(k_up))
        new = rounded(product(rounded(b[None, :] * error, OPERAND), tl.trans(solve)), OPERAND)
        tl.store(new_out + at * V + tall, new, inside)
        d_b = tl.load(d_rows + at * V + tall, inside, 0.0).to(tl.float32)
        tl.store(error_out + at + row * H, tl.sum(d_b * error, 0), valid)
        back = tl.trans(left)
        tl.store(
            s_value + at * K + across, rounded(product(back, rounded(-b[None, :] * d_b, OPERAND)), OPERAND), inside
        )
        d_o = rounded(tl.load(d_out + at * V + tall, inside, 0.0).to(tl.float32), OPERAND)
        tl.store(s_out + at * K + across, rounded(product(back, d_o), OPERAND), inside)
        state = product(new, k_end, acc=state * at_end[None, :])

    d_state = tl.load(after + state_tile).to(tl.float32)
    tl.store(end_out + (group * H + head) * K + channel, tl.sum(state * d_state, 0))


@triton.jit
def walk_back_kernel(
    beta, k_in, q_in, decay, d_out, d_rows, after, new_in, s_new,
    cu_seqlens, first_chunk, first_group, group_sequence, beta_stride, num_sequences,
    H: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, V: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr,
    SIGMOID: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    part, program = tl.program_id(0) % (K // BK), tl.program_id(0) // (K // BK)
    group, head = (program // H).to(tl.int64), program % H
    n = tl.load(group_sequence + group)
    if n >= num_sequences:
        return
    ordinal = group - tl.load(first_group + n)
    begin, end = tl.load(cu_seqlens + n) + ordinal * GROUP * C, tl.load(cu_seqlens + n + 1)
    chunk0 = tl.load(first_chunk + n) + ordinal * GROUP
    num_chunks = tl.minimum(GROUP, (end - begin + C - 1) // C).to(tl.int32)

    row, channel, value = tl.arange(0, C), part * BK + tl.arange(0, BK), tl.arange(0, V)
    # 64-bit offsets only where they are the same for the whole tile.
    wide, tall = row[:, None] * (H * K) + channel[None, :], row[None, :] * (H * V) + value[:, None]
    across = row[None, :] * (H * K) + channel[:, None]
    d_state = tl.load(after + (group * H + head) * K * V + (value[:, None] * K + channel[None, :])).to(tl.float32)
    for step in range(num_chunks):
        c = num_chunks - 1 - step
        first = begin + c * C
        at = first * H + head
        valid = row < end - first
        inside = valid[None, :]
        new = tl.load(new_in + at * V + tall, inside, 0.0)
        tl.store(s_new + at * K + across, product(tl.trans(rounded(d_state, OPERAND)), new), inside)
        b = tl.load(beta + first * beta_stride + head + row * beta_stride, valid, 0.0).to(tl.float32)
        if SIGMOID:
            b = sigmoid(b)
        at_end = tl.load(decay + ((chunk0 + c) * H + head) * K + channel)
        d_o = rounded(tl.load(d_out + at * V + tall, inside, 0.0).to(tl.float32), OPERAND)
        d_b = tl.load(d_rows + at * V + tall, inside, 0.0).to(tl.float32)
        q_up = tl.load(q_in + at * K + wide, valid[:, None], 0.0)
        k_up = tl.load(k_in + at * K + wide, valid[:, None], 0.0)
        d_state = product(d_o, q_up, acc=d_state * at_end[None, :])
        d_state = product(rounded(-b[None, :] * d_b, OPERAND), k_up, acc=d_state)


def walk(
    x: ChunkInputs, index: ChunkIndex, p: Prepared, d_out: Tensor, d_rows: Tensor, before: Tensor, after: Tensor
) -> Walked:
    """Launches the kernels.

    Args:
        d_out, d_rows: `[T, H, V]`, gradient of the output, and `reverse_scan`'s result.
        before, after: `[NG, H, V, K]` checkpoints of `scan` and `reverse_scan`.
    """
    tokens, heads, key_dim = x.q.shape
    value_dim, groups = x.v.shape[-1], len(index.group_sequence)
    new = x.q.new_empty(tokens, heads, value_dim, dtype=x.operand)
    s_out, s_value = (x.q.new_empty(tokens, heads, key_dim, dtype=x.operand) for _ in range(2))
    s_new = x.q.new_empty(tokens, heads, key_dim, dtype=torch.float32)
    error = x.q.new_empty(tokens, heads, dtype=torch.float32)
    end = x.q.new_empty(groups, heads, key_dim, dtype=torch.float32)
    if groups:
        walk_kernel[(groups * heads,)](
            x.v, x.beta, p.k_in, p.k_out, p.inverse, p.decay, d_out, d_rows, before, after,
            new, s_out, s_value, error, end,
            index.cu_seqlens, index.first_chunk, index.first_group, index.group_sequence,
            x.v.stride(0), x.beta.stride(0), index.num_sequences,
            H=heads, K=key_dim, V=value_dim, C=CHUNK, GROUP=GROUP,
            SIGMOID=x.sigmoid, OPERAND=TRITON_DTYPES[x.operand], num_warps=8, num_stages=2,
        )  # fmt: skip
        block = min(key_dim, 64)
        walk_back_kernel[(groups * heads * (key_dim // block),)](
            x.beta, p.k_in, p.q_in, p.decay, d_out, d_rows, after, new, s_new,
            index.cu_seqlens, index.first_chunk, index.first_group, index.group_sequence,
            x.beta.stride(0), index.num_sequences,
            H=heads, K=key_dim, BK=block, V=value_dim, C=CHUNK, GROUP=GROUP,
            SIGMOID=x.sigmoid, OPERAND=TRITON_DTYPES[x.operand], num_warps=4, num_stages=2,
        )  # fmt: skip
    return Walked(new, s_out, s_value, s_new, error, end)
