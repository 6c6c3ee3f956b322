"""Second part of the backward pass: all that needs a chunk's state or the gradient of it.

A group is `GROUP` chunks. From the state before it and the gradient of the state after it, the checkpoints of the two
scans, programs walk over its chunks. With S the state before a chunk, dS⁺ the gradient of the state after it and
dv = β db (`reverse_scan`), they leave

    v' = T β (v − k⁺ S)      Σ_v db (v − k⁺ S)      S do      −S dv      dS⁺ v'      Σ_v S_end dS_end (end of the group)

for the last kernels, `gradients`, which need no state. What sums over K and what sums over V is in different kernels,
so that a program holds a part of the state only: `values_kernel` some columns v of it, `walk_kernel` and
`walk_back_kernel` some rows k.

The gradient of the decay is a difference of S do, S dv and dS⁺ v', in which a pair of tokens on both sides of a chunk's
boundary cancels but for the tokens between them. So S and dS⁺ are multiplied to more than the operands' precision.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltarl.kernels.gpu.index import CHUNK, GROUP, ChunkIndex
from deltarl.kernels.gpu.inputs import ChunkInputs
from deltarl.kernels.gpu.ops import TRITON_DTYPES, operand, product, registers, rounded, sigmoid, spread
from deltarl.kernels.gpu.prepare import Prepared


class Walked(NamedTuple):
    """Per token: new v' `[T, H, V]` in the operand dtype; s_out, s_value and s_new, S do, −S dv and dS⁺ v' `[T, H, K]`.

    error: parts of Σ_v db (v − k⁺ S) `[P, T, H]`.  end: Σ_v S_end dS_end `[NG, H, K]`. All but `new` are fp32.
    """

    new: Tensor
    error: Tensor
    s_out: Tensor
    s_value: Tensor
    s_new: Tensor
    end: Tensor


@triton.jit
def halves(x, OPERAND: tl.constexpr):
    """fp32 `x` as the sum of two operands, good to 2^-17 (the second is 0 and not used where operands are fp32)."""
    high = operand(x, OPERAND)
    return high, operand(x - high.to(tl.float32), OPERAND)


@triton.jit
def fine_product(high, low, b):
    """`(high + low) @ b` of `halves` and an operand."""
    total = product(high, b)
    if high.dtype != tl.float32:
        total = product(low, b, acc=total)
    return total


@triton.jit
def values_kernel(
    v, beta, k_in, k_out, inverse, decay, d_rows, before, new_out, error_out,
    cu_seqlens, first_chunk, first_group, group_sequence, v_stride, beta_stride, num_sequences, num_tokens,
    H: tl.constexpr, ALL: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    GROUP: tl.constexpr,
    SIGMOID: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    part, program = tl.program_id(0) % (V // BV), tl.program_id(0) // (V // BV)
    group, head = (program // H).to(tl.int64), program % H
    n = tl.load(group_sequence + group)
    if n >= num_sequences:
        return
    ordinal = group - tl.load(first_group + n)
    begin, end = tl.load(cu_seqlens + n) + ordinal * GROUP * C, tl.load(cu_seqlens + n + 1)
    chunk0 = tl.load(first_chunk + n) + ordinal * GROUP
    num_chunks = tl.minimum(GROUP, (end - begin + C - 1) // C).to(tl.int32)

    row, channel, value = tl.arange(0, C), tl.arange(0, K), part * BV + tl.arange(0, BV)
    # 64-bit offsets only where they are the same for the whole tile.
    wide, tall = row[:, None] * (H * K) + channel[None, :], row[None, :] * (H * V) + value[:, None]
    square, v_tile = row[:, None] * (H * C) + row[None, :], row[None, :] * v_stride + value[:, None]
    state = tl.load(before + (group * ALL + head) * K * V + (value[:, None] * K + channel[None, :])).to(tl.float32)
    # The compiler loads ahead what is an operand of a product; the rest is loaded a chunk ahead here.
    decay += (chunk0 * H + head) * K + channel
    beta += begin * beta_stride + head + row * beta_stride
    next_end, next_beta = tl.load(decay), tl.load(beta, row < end - begin, 0.0)
    error_out += part.to(tl.int64) * num_tokens * H
    for c in range(num_chunks):
        first = begin + c * C
        at = first * H + head
        valid = row < end - first
        inside = valid[None, :]
        k_up = tl.load(k_in + at * K + wide, valid[:, None], 0.0)
        k_end = tl.load(k_out + at * K + wide, valid[:, None], 0.0)
        solve = tl.load(inverse + at * C + square, valid[:, None], 0.0)
        at_end, b = next_end, next_beta.to(tl.float32)
        decay, beta = decay + H * K, beta + C * beta_stride
        next_end = tl.load(decay, channel * 0 + c + 1 < num_chunks, 0.0)
        next_beta = tl.load(beta, row < end - first - C, 0.0)
        if SIGMOID:
            b = sigmoid(b)
        error = spread(tl.load(v + (first * v_stride + head * V) + v_tile, inside, 0.0), 1.0, C)
        error -= product(rounded(state, OPERAND), tl.trans(k_up))
        new = rounded(product(rounded(b[None, :] * error, OPERAND), tl.trans(solve)), OPERAND)
        tl.store(new_out + at * V + tall, new, inside)
        d_b = spread(tl.load(d_rows + at * V + tall, inside, 0.0), 1.0, C)
        tl.store(error_out + at + row * H, tl.sum(d_b * error, 0), valid)
        state = product(new, k_end, acc=state * at_end[None, :])


@triton.jit
def walk_kernel(
    beta, k_out, decay, d_out, d_rows, before, after, new_in, s_out, s_value, end_out,
    cu_seqlens, first_chunk, first_group, group_sequence, beta_stride, num_sequences,
    H: tl.constexpr, ALL: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    GROUP: tl.constexpr,
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
    across, tall = row[None, :] * (H * K) + channel[:, None], row[None, :] * (H * V) + value[:, None]
    out_tall = row[None, :] * (ALL * V) + value[:, None]
    state_tile = value[:, None] * K + channel[None, :]
    state = tl.trans(tl.load(before + (group * ALL + head) * K * V + state_tile)).to(tl.float32)
    # The compiler loads ahead what is an operand of a product; the rest is loaded a chunk ahead here.
    decay += (chunk0 * H + head) * K + channel
    beta += begin * beta_stride + head + row * beta_stride
    next_end, next_beta = tl.load(decay), tl.load(beta, row < end - begin, 0.0)
    for c in range(num_chunks):
        first = begin + c * C
        at = first * H + head
        valid = row < end - first
        inside = valid[None, :]
        at_end, b = next_end, next_beta.to(tl.float32)
        decay, beta = decay + H * K, beta + C * beta_stride
        next_end = tl.load(decay, channel * 0 + c + 1 < num_chunks, 0.0)
        next_beta = tl.load(beta, row < end - first - C, 0.0)
        if SIGMOID:
            b = sigmoid(b)
        high, low = halves(state, OPERAND)
        d_b = tl.load(d_rows + at * V + tall, inside, 0.0).to(tl.float32)
        tl.store(s_value + at * K + across, fine_product(high, low, rounded(-b[None, :] * d_b, OPERAND)), inside)
        d_o = rounded(tl.load(d_out + (first * ALL + head) * V + out_tall, inside, 0.0).to(tl.float32), OPERAND)
        tl.store(s_out + at * K + across, fine_product(high, low, d_o), inside)
        k_end = tl.load(k_out + at * K + across, inside, 0.0)
        new = tl.load(new_in + at * V + tall, inside, 0.0)
        state = product(k_end, tl.trans(new), acc=state * at_end[:, None])

    d_state = tl.trans(tl.load(after + (group * H + head) * K * V + state_tile)).to(tl.float32)
    tl.store(end_out + (group * H + head) * K + channel, tl.sum(state * d_state, 1))


@triton.jit
def walk_back_kernel(
    beta, k_in, q_in, decay, d_out, d_rows, after, new_in, s_new,
    cu_seqlens, first_chunk, first_group, group_sequence, beta_stride, num_sequences,
    H: tl.constexpr, ALL: tl.constexpr, K: tl.constexpr, BK: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    GROUP: tl.constexpr,
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
    across, tall = row[None, :] * (H * K) + channel[:, None], row[None, :] * (H * V) + value[:, None]
    out_tall = row[None, :] * (ALL * V) + value[:, None]
    d_state = tl.load(after + (group * H + head) * K * V + (value[:, None] * K + channel[None, :]))
    d_state = tl.trans(d_state).to(tl.float32)
    # The compiler loads ahead what is an operand of a product; the rest is loaded a chunk ahead here.
    last = num_chunks - 1
    decay += ((chunk0 + last) * H + head) * K + channel
    beta += (begin + last * C) * beta_stride + head + row * beta_stride
    next_end, next_beta = tl.load(decay), tl.load(beta, row < end - begin - last * C, 0.0)
    for step in range(num_chunks):
        c = last - step
        first = begin + c * C
        at = first * H + head
        valid = row < end - first
        inside = valid[None, :]
        at_end, b = next_end, next_beta.to(tl.float32)
        decay, beta = decay - H * K, beta - C * beta_stride
        next_end, next_beta = tl.load(decay, channel * 0 < c, 0.0), tl.load(beta, row * 0 < c, 0.0)
        if SIGMOID:
            b = sigmoid(b)
        new = tl.load(new_in + at * V + tall, inside, 0.0)
        high, low = halves(d_state, OPERAND)
        tl.store(s_new + at * K + across, fine_product(high, low, new), inside)
        q_up = tl.load(q_in + at * K + across, inside, 0.0)
        d_o = rounded(tl.load(d_out + (first * ALL + head) * V + out_tall, inside, 0.0).to(tl.float32), OPERAND)
        d_state = product(q_up, tl.trans(d_o), acc=d_state * at_end[:, None])
        k_up = tl.load(k_in + at * K + across, inside, 0.0)
        d_b = tl.load(d_rows + at * V + tall, inside, 0.0).to(tl.float32)
        d_state = product(k_up, tl.trans(rounded(-b[None, :] * d_b, OPERAND)), acc=d_state)


def walk(
    x: ChunkInputs, index: ChunkIndex, p: Prepared, d_out: Tensor, d_rows: Tensor, before: Tensor, after: Tensor
) -> Walked:
    """Launches the kernels.

    Args:
        d_out, d_rows: `[T, H, V]`, gradient of the output, and `reverse_scan`'s result.
        before, after: `[NG, H, V, K]` checkpoints of `scan` and `reverse_scan`. As `d_out`, the former may be
            `x`'s share of the heads of a contiguous tensor.
    """
    tokens, heads, key_dim = x.q.shape
    value_dim, groups = x.v.shape[-1], len(index.group_sequence)
    most = 16 if x.operand == torch.float32 else 64  # channels; see `value_block`
    block_k, block_v = min(key_dim, most), min(value_dim, most)
    new = x.q.new_empty(tokens, heads, value_dim, dtype=x.operand)
    error = x.q.new_empty(value_dim // block_v, tokens, heads, dtype=torch.float32)
    s_out, s_value, s_new = (x.q.new_empty(tokens, heads, key_dim, dtype=torch.float32) for _ in range(3))
    end = x.q.new_empty(groups, heads, key_dim, dtype=torch.float32)
    where = (index.cu_seqlens, index.first_chunk, index.first_group, index.group_sequence)
    sizes = {"H": heads, "ALL": x.all_heads, "K": key_dim, "V": value_dim, "C": CHUNK, "GROUP": GROUP}
    options = {"SIGMOID": x.sigmoid, "OPERAND": TRITON_DTYPES[x.operand], "num_warps": 4, "num_stages": 3}
    if x.operand == torch.bfloat16:
        options |= registers(168)
    if groups:
        values_kernel[(groups * heads * (value_dim // block_v),)](
            x.v, x.beta, p.k_in, p.k_out, p.inverse, p.decay, d_rows, before, new, error,
            *where, x.v.stride(0), x.beta.stride(0), index.num_sequences, tokens, BV=block_v, **sizes, **options,
        )  # fmt: skip
        walk_kernel[(groups * heads * (key_dim // block_k),)](
            x.beta, p.k_out, p.decay, d_out, d_rows, before, after, new, s_out, s_value, end,
            *where, x.beta.stride(0), index.num_sequences, BK=block_k, **sizes, **options,
        )  # fmt: skip
        walk_back_kernel[(groups * heads * (key_dim // block_k),)](
            x.beta, p.k_in, p.q_in, p.decay, d_out, d_rows, after, new, s_new,
            *where, x.beta.stride(0), index.num_sequences, BK=block_k, **sizes, **options,
        )  # fmt: skip
    return Walked(new, error, s_out, s_value, s_new, end)
