"""Second kernel of the chunk form: the state walks over the chunks of a sequence and gives the output.

    b = β (v − k⁺ S)      v' = T b      o = q⁺ S + Aqk v'      S⁺ = Diag(e^{G_C}) S + k°ᵀ v'

One program owns a block of value channels of one head of one sequence. The state is held transposed, `[V, K]`, so that
it is the left operand of its products and stays in registers; so are the rows b, v' and o, `[V, C]`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltarl.kernels.gpu.index import CHUNK, GROUP, ChunkIndex
from deltarl.kernels.gpu.inputs import ChunkInputs
from deltarl.kernels.gpu.ops import TRITON_DTYPES, multiprocessors, product, rounded, sigmoid, spread
from deltarl.kernels.gpu.prepare import Prepared
from deltarl.kernels.gpu.slots import SlotState


@triton.jit
def scan_kernel(
    v, beta, k_in, q_in, k_out, inverse, attend, decay, out, initial, final, checkpoints,
    cu_seqlens, storage, first_chunk, first_group,
    offset, slots, slot_k, slot_g, slot_l, slot_b, tail_k, tail_g, tail_l,
    v_stride, beta_stride,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr,
    SIGMOID: tl.constexpr, OPERAND: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr,
    CHECKPOINTS: tl.constexpr, CONTINUE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0) % (V // BV)
    pair = (tl.program_id(0) // (V // BV)).to(tl.int64)
    n, head = pair // H, pair % H
    begin, end = tl.load(cu_seqlens + n), tl.load(cu_seqlens + n + 1)
    chunk0, group0 = tl.load(first_chunk + n).to(tl.int64), tl.load(first_group + n).to(tl.int64)
    num_chunks = tl.load(first_chunk + n + 1) - tl.load(first_chunk + n)
    base, first = tl.load(storage + n), begin
    if CONTINUE:
        first -= tl.load(offset + n)
    home = pair  # where the state comes from and goes to
    if SLOTS:
        home = tl.load(slots + n).to(tl.int64) * H + head

    row, channel = tl.arange(0, C), tl.arange(0, K)
    value = block * BV + tl.arange(0, BV)
    tile = channel[None, :] * V + value[:, None]
    state = tl.zeros([BV, K], tl.float32)
    if INITIAL:
        state = tl.load(initial + home * K * V + tile)

    # 64-bit offsets only where they are the same for the whole tile.
    wide, square = row[:, None] * (H * K) + channel[None, :], row[:, None] * (H * C) + row[None, :]
    tall, v_tile = row[None, :] * (H * V) + value[:, None], row[None, :] * v_stride + value[:, None]
    # The compiler loads ahead what is an operand of a product; the rest is loaded a chunk ahead here.
    decay += (chunk0 * H + head) * K + channel
    beta += first * beta_stride + head + row * beta_stride
    next_end = tl.load(decay, channel * 0 < num_chunks, 0.0)
    next_beta = tl.load(beta, (row >= begin - first) & (row < end - first), 0.0)
    for c in range(num_chunks):
        here = first + c * C
        valid, present = (row >= begin - here) & (row < end - here), row < end - here
        at = (base + c * C) * H + head
        k_up = tl.load(k_in + at * K + wide, present[:, None], 0.0)
        q_up = tl.load(q_in + at * K + wide, present[:, None], 0.0)
        k_end = tl.load(k_out + at * K + wide, present[:, None], 0.0)
        solve = tl.load(inverse + at * C + square, present[:, None], 0.0)
        aqk = tl.load(attend + at * C + square, present[:, None], 0.0)
        v_t = spread(tl.load(v + (here * v_stride + head * V) + v_tile, valid[None, :], 0.0), 1.0, C)
        at_end, b = next_end, next_beta.to(tl.float32)
        decay, beta = decay + H * K, beta + C * beta_stride
        next_end = tl.load(decay, channel * 0 + c + 1 < num_chunks, 0.0)
        next_beta = tl.load(beta, row < end - here - C, 0.0)
        if SIGMOID:
            b = sigmoid(b)
        if CHECKPOINTS:
            if c % GROUP == 0:
                where = checkpoints + ((group0 + c // GROUP) * H + head) * K * V
                tl.store(where + (value[:, None] * K + channel[None, :]), rounded(state, OPERAND))

        left = rounded(state, OPERAND)
        read = product(left, tl.trans(k_up))
        rows = rounded(b[None, :] * (v_t - read), OPERAND)
        if SLOTS:
            buffer = slot_b + home * C * V + (row[None, :] * V + value[:, None])
            if CONTINUE:
                known = (row < begin - here)[None, :]
                rows = tl.where(known, tl.load(buffer, known, 0.0), rows)
            if c == num_chunks - 1:
                tl.store(buffer, rows, valid[None, :])
        new = rounded(product(rows, tl.trans(solve)), OPERAND)
        o = product(left, tl.trans(q_up))
        o = product(new, tl.trans(aqk), acc=o)
        tl.store(out + (here * H + head) * V + tall, rounded(o, out.dtype.element_ty), valid[None, :])
        following = product(new, k_end, acc=state * at_end[None, :])
        if SLOTS:
            # The decoder keeps the state at the last boundary and the rows since.
            following = tl.where(here + C <= end, following, state)
        state = following

    if FINAL:
        tl.store(final + home * K * V + tile, state)
    if SLOTS:
        if block == 0 and num_chunks > 0:
            source, target = (pair * C + row)[:, None], (home * C + row)[:, None]
            channels, columns = channel[None, :], row[None, :]
            tl.store(slot_k + target * K + channels, tl.load(tail_k + source * K + channels))
            tl.store(slot_g + target * K + channels, tl.load(tail_g + source * K + channels))
            tl.store(slot_l + target * C + columns, tl.load(tail_l + source * C + columns))


def value_block(states: int, value_dim: int, operand: torch.dtype, device: torch.device) -> int:
    """Value channels per program for so many states: as many as leave a program for every multiprocessor.

    Few in fp32, whose products run without tensor cores and need more registers.
    """
    if operand == torch.float32:
        return 16
    block = value_dim
    while block > 32 and states * (value_dim // block) < multiprocessors(device):
        block //= 2
    return block


def warps(block: int) -> int:
    """For a program of `block` value channels."""
    return 2 if block == 32 else 4


def scan(
    x: ChunkInputs,
    index: ChunkIndex,
    p: Prepared,
    initial: Tensor | None,
    final: Tensor | None = None,
    checkpoints: Tensor | None = None,
    slots: Tensor | None = None,
    state: SlotState | None = None,
) -> Tensor:
    """Launches the kernel; returns the output `[T, H, V]` in v's dtype.

    Args:
        initial: `[N, H, K, V]` fp32 or None for zeros; with slots, their `[S, H, K, V]` states.
        final: receives the final states, shape of `initial`; with slots, the states at the last chunk boundary.
        checkpoints: `[NG, H, V, K]` receives the state before every group of `GROUP` chunks, for the backward pass.
        slots, state: as in `prepare`; the unfinished last chunk of every sequence is left there.
    """
    tokens, heads, key_dim = x.q.shape
    value_dim, sequences = x.v.shape[-1], index.num_sequences
    out = x.v.new_empty(tokens, heads, value_dim)
    block = value_block(sequences * heads, value_dim, x.operand, x.q.device)
    if sequences:
        scan_kernel[(sequences * heads * (value_dim // block),)](
            x.v, x.beta, p.k_in, p.q_in, p.k_out, p.inverse, p.attend, p.decay,
            out, initial, final, checkpoints,
            index.cu_seqlens, index.storage, index.first_chunk, index.first_group,
            index.offset, slots,
            *((state.k, state.g, state.lower, state.values) if state else (None,) * 4),
            *(p.tail or (None,) * 3),
            x.v.stride(0), x.beta.stride(0),
            H=heads, K=key_dim, V=value_dim, BV=block, C=CHUNK, GROUP=GROUP,
            SIGMOID=x.sigmoid, OPERAND=TRITON_DTYPES[x.operand], INITIAL=initial is not None, FINAL=final is not None,
            CHECKPOINTS=checkpoints is not None, CONTINUE=index.offset is not None, SLOTS=state is not None,
            num_warps=warps(block), num_stages=3, enable_fp_fusion=False,
        )  # fmt: skip
    return out
