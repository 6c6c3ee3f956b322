"""First kernel of the backward pass: the gradient of the state walks back over the chunks of a sequence.

With `do` the gradient of the output and `dS⁺` that of the state after a chunk (`deltarl.kernels.gpu.scan`):

    dv' = Aqkᵀ do + k° dS⁺      db = Tᵀ dv'      dS = Diag(e^{G_C}) dS⁺ + q⁺ᵀ do − k⁺ᵀ (β db)

None of it needs the state itself. One program owns a block of value channels of one head of one sequence, and
everything is held transposed, as in the forward scan.
"""

import triton
import triton.language as tl
from torch import Tensor

from deltarl.kernels.gpu.index import CHUNK, GROUP, ChunkIndex
from deltarl.kernels.gpu.inputs import ChunkInputs
from deltarl.kernels.gpu.ops import TRITON_DTYPES, product, rounded, sigmoid
from deltarl.kernels.gpu.prepare import Prepared
from deltarl.kernels.gpu.scan import value_block, warps


@triton.jit
def reverse_scan_kernel(
    d_out, beta, k_in, q_in, k_out, inverse, attend, decay, d_final, d_initial, d_rows, checkpoints,
    cu_seqlens, first_chunk, first_group, beta_stride,
    H: tl.constexpr, ALL: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, C: tl.constexpr,
    GROUP: tl.constexpr,
    SIGMOID: tl.constexpr, OPERAND: tl.constexpr, D_FINAL: tl.constexpr, D_INITIAL: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0) % (V // BV)
    pair = (tl.program_id(0) // (V // BV)).to(tl.int64)
    n, head = pair // H, pair % H
    begin, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    chunk0, group0 = tl.load(first_chunk + n).to(tl.int64), tl.load(first_group + n).to(tl.int64)
    num_chunks = tl.load(first_chunk + n + 1) - tl.load(first_chunk + n)

    row, channel = tl.arange(0, C), tl.arange(0, K)
    value = block * BV + tl.arange(0, BV)
    tile = (n * ALL + head) * K * V + channel[None, :] * V + value[:, None]
    d_state = tl.zeros([BV, K], tl.float32)
    if D_FINAL:
        d_state = tl.load(d_final + tile)

    # 64-bit offsets only where they are the same for the whole tile.
    wide, square = row[:, None] * (H * K) + channel[None, :], row[:, None] * (H * C) + row[None, :]
    tall, out_tall = row[None, :] * (H * V) + value[:, None], row[None, :] * (ALL * V) + value[:, None]
    # The compiler loads ahead what is an operand of a product; the rest is loaded a chunk ahead here.
    last = (tl.maximum(num_chunks, 1) - 1).to(tl.int64)
    decay += ((chunk0 + last) * H + head) * K + channel
    beta += (begin + last * C) * beta_stride + head + row * beta_stride
    next_end = tl.load(decay, channel * 0 < num_chunks, 0.0)
    next_beta = tl.load(beta, row < end - begin - last * C, 0.0)
    for step in range(num_chunks):
        c = last - step
        first = begin + c * C
        at = first * H + head
        valid = row < end - first
        k_up = tl.load(k_in + at * K + wide, valid[:, None], 0.0)
        q_up = tl.load(q_in + at * K + wide, valid[:, None], 0.0)
        k_end = tl.load(k_out + at * K + wide, valid[:, None], 0.0)
        solve = tl.load(inverse + at * C + square, valid[:, None], 0.0)
        aqk = tl.load(attend + at * C + square, valid[:, None], 0.0)
        at_end, b = next_end, next_beta.to(tl.float32)
        decay, beta = decay - H * K, beta - C * beta_stride
        next_end, next_beta = tl.load(decay, channel * 0 < c, 0.0), tl.load(beta, row * 0 < c, 0.0)
        if SIGMOID:
            b = sigmoid(b)
        d_o = rounded(tl.load(d_out + (first * ALL + head) * V + out_tall, valid[None, :], 0.0).to(tl.float32), OPERAND)
        if (c % GROUP == GROUP - 1) | (step == 0):
            where = checkpoints + ((group0 + c // GROUP) * H + head) * K * V
            tl.store(where + (value[:, None] * K + channel[None, :]), rounded(d_state, OPERAND))

        d_new = product(d_o, aqk)
        d_new = product(rounded(d_state, OPERAND), tl.trans(k_end), acc=d_new)
        d_row = product(rounded(d_new, OPERAND), solve)
        tl.store(d_rows + at * V + tall, rounded(d_row, OPERAND), valid[None, :])
        d_state = product(d_o, q_up, acc=d_state * at_end[None, :])
        d_state = product(rounded(-b[None, :] * d_row, OPERAND), k_up, acc=d_state)

    if D_INITIAL:
        tl.store(d_initial + tile, d_state)


def reverse_scan(
    x: ChunkInputs,
    index: ChunkIndex,
    p: Prepared,
    d_out: Tensor,
    d_final: Tensor | None,
    d_initial: Tensor | None,
    checkpoints: Tensor,
) -> Tensor:
    """Launches the kernel; returns db `[T, H, V]` in the operand dtype.

    Args:
        d_out: `[T, H, V]`.  d_final: `[N, H, K, V]` fp32 or None for zeros.
        d_initial: receives the gradient of the initial states.
            These three are contiguous, or `x`'s share of the heads of tensors that are.
        checkpoints: `[NG, H, V, K]` receives the gradient of the state after every group of `GROUP` chunks.
    """
    tokens, heads, key_dim = x.q.shape
    value_dim = x.v.shape[-1]
    d_rows = x.v.new_empty(tokens, heads, value_dim, dtype=x.operand)
    block = min(64, value_block(index.num_sequences * heads, value_dim, x.operand, x.q.device))
    if index.num_sequences:
        reverse_scan_kernel[(index.num_sequences * heads * (value_dim // block),)](
            d_out, x.beta, p.k_in, p.q_in, p.k_out, p.inverse, p.attend, p.decay,
            d_final, d_initial, d_rows, checkpoints,
            index.cu_seqlens, index.first_chunk, index.first_group, x.beta.stride(0),
            H=heads, ALL=x.all_heads, K=key_dim, V=value_dim, BV=block, C=CHUNK, GROUP=GROUP, SIGMOID=x.sigmoid,
            OPERAND=TRITON_DTYPES[x.operand],
            D_FINAL=d_final is not None, D_INITIAL=d_initial is not None, num_warps=warps(block), num_stages=3,
        )  # fmt: skip
    return d_rows
