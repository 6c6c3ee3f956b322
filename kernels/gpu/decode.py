"""One token of a KDA layer in one launch: convolution, norm, gate, state, output norm. One program per token and head.

In the replay form the token is computed as the next row of the chunk that the learner will compute (`prepare`, `scan`),
by the same operations on tiles of the same shape, so that its numbers are those of that row to the bit. A slot keeps
the state at the last chunk boundary and the rows since; the state is read for every token but written once per chunk.
The recurrent form updates the state with every token: simpler, close to but not exactly the same numbers.

Programs share nothing: a program alone reads and writes its head's part of its sequence's slot, and the convolution's
window is a ring, in which the new input takes the place of the one that falls out.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltarl.kernels.gpu.conv import conv_taps
from deltarl.kernels.gpu.index import CHUNK
from deltarl.kernels.gpu.inputs import FLOATS, HEAD_DIMS, Gate
from deltarl.kernels.gpu.norm import gated, norm_scale
from deltarl.kernels.gpu.ops import (
    INTERPRETED,
    TRITON_DTYPES,
    capability,
    column_squares,
    exponential,
    multiprocessors,
    product,
    registers,
    rounded,
    sigmoid,
    silu,
)
from deltarl.kernels.gpu.prepare import ANCHOR, LN2, fall, lowered
from deltarl.kernels.gpu.rows import cumulative, log_decay, unit_columns, unit_lower_inverse
from deltarl.kernels.gpu.slots import SlotState

# Programs a multiprocessor, up to which states are fetched into L2 early: of more, some would be evicted again.
FEW = 64


@triton.jit
def convolved(x0, ring, taps, channel, position, D: tl.constexpr, WIDTH: tl.constexpr):
    """The short convolution of one token for some channels, rounded as its inputs but fp32; its input joins the ring.

    x0: the token's inputs.  ring: the sequence's `[W, D]`, input of position p at index p % W.  taps: pointers to the
    last weight of each channel.
    """
    w0, w1 = tl.load(taps).to(tl.float32), tl.load(taps - 1).to(tl.float32)
    x1 = _remembered(ring, channel, position - 1, D, WIDTH)
    w2, x2, w3, x3 = w1, x1, w1, x1
    if WIDTH > 2:
        w2 = tl.load(taps - 2).to(tl.float32)
        x2 = _remembered(ring, channel, position - 2, D, WIDTH)
    if WIDTH > 3:
        w3 = tl.load(taps - 3).to(tl.float32)
        x3 = _remembered(ring, channel, position - 3, D, WIDTH)
    tl.store(ring + (position % WIDTH) * D + channel, x0)
    return rounded(silu(conv_taps(x0.to(tl.float32), x1, x2, x3, w0, w1, w2, w3, WIDTH)), x0.dtype).to(tl.float32)


@triton.jit
def shared(x):
    """Vector `x`, computed once, an element per thread, then read from shared memory by whichever threads need it.

    The compiler would compute it in every layout that it is used in, by many threads each; it does not do so across a
    gather.
    """
    return tl.gather(x, tl.arange(0, x.shape[0]), 0)


@triton.jit
def _remembered(ring, channel, position, D: tl.constexpr, WIDTH: tl.constexpr):
    known = channel * 0 + position >= 0
    return tl.load(ring + (tl.maximum(position, 0) % WIDTH) * D + channel, known, 0.0).to(tl.float32)


@triton.jit
def prefetch(x, BYTES: tl.constexpr, BULK: tl.constexpr):
    """Has BYTES on their way to the L2 cache, while the program computes what it will read them with.

    BULK: one instruction of one thread, which Hopper is the first to have; else one for every cache line.
    """
    if not INTERPRETED:
        if BULK:
            bulk: tl.constexpr = (
                "{ .reg .pred first; .reg .u32 thread; mov.u32 thread, %tid.x; setp.eq.u32 first, thread, 0; "
                "@first cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0; }"
            )
            size = tl.full([], BYTES, tl.int32)
            tl.inline_asm_elementwise(bulk, "=r,l,r", [x.to(tl.int64), size], dtype=tl.int32, is_pure=False, pack=1)
        else:
            lines = x.to(tl.int64) + tl.arange(0, BYTES // 128) * 128
            code: tl.constexpr = "prefetch.global.L2 [$1]; mov.b32 $0, 0;"
            tl.inline_asm_elementwise(code, "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def settled(x):
    """Operand tile `x`, out of the compiler's sight, which changes with what it sees an operand to come from.

    A rounded tile would move between threads in fp32, and one that comes from a join have its products summed in
    another order.
    """
    if INTERPRETED:
        return x
    PACK: tl.constexpr = 32 // x.dtype.primitive_bitwidth
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=PACK)


@triton.jit
def two_columns(first, second, C: tl.constexpr):
    """Tile `[D, C]` of two vectors and zeros."""
    column = tl.arange(0, C)[None, :]
    return tl.where(column == 0, first[:, None], tl.where(column == 1, second[:, None], 0.0))


@triton.jit
def column_of(x, i):
    """Column i of a tile, as a vector."""
    return tl.sum(tl.where(tl.arange(0, x.shape[1])[None, :] == i, x, 0.0), 1)


@triton.jit
def row_of(x, i):
    """Row i of a tile, as a vector."""
    return tl.sum(tl.where(tl.arange(0, x.shape[0])[:, None] == i, x, 0.0), 0)


@triton.jit
def replayed_values(
    state, slot_b, old_rows, v, first, write, inputs, solve, attend, r,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Values `first..first+BV` of row r of `deltarl.kernels.gpu.scan`, `[BV]`.

    old_rows: `[BV, C]`.  inputs: `[K, C]`, k⁺ and q⁺ of row r in columns 0 and 1.  solve: T transposed `[C, C]`.
    attend: row r of Aqk in column 1 `[C, C]`.
    """
    value = first + tl.arange(0, BV)
    state += tl.arange(0, K)[None, :] * V + value[:, None]
    read = product(settled(rounded(tl.load(state), OPERAND)), inputs)
    new_row = rounded(write * (tl.gather(v, value, 0) - column_of(read, 0)), OPERAND)
    tl.store(slot_b + r * V + value, new_row)
    is_r = (tl.arange(0, old_rows.shape[1]) == r)[None, :]
    new = rounded(product(tl.where(is_r, new_row[:, None], old_rows), solve), OPERAND)
    return column_of(product(new, attend, acc=read), 1)


@triton.jit
def joined(low, high):
    """One vector after the other."""
    return tl.reshape(tl.trans(tl.join(low, high)), [2 * low.shape[0]])


@triton.jit
def far_row(slot_k, slot_g, query, r, K: tl.constexpr, C: tl.constexpr, OPERAND: tl.constexpr):
    """Row r of Akk and Aqk where it is far, `[C]`; query: `[K]`.

    As `far_scores` has it, but for one row and all columns at once: those columns stand on the diagonal. It reads
    and computes again what the caller has, which would take registers from every row.
    """
    tl.debug_barrier()
    row, channel = tl.arange(0, C), tl.arange(0, K)
    tile, known = row[None, :] * K + channel[:, None], (row <= r)[None, :]
    cum = cumulative(tl.load(slot_g + tile, known, 0.0), C, OPERAND)
    fade = exponential(tl.minimum(tl.sum(tl.where((row == r)[None, :], cum, 0.0), 1)[:, None] - cum, 0.0))
    keys, diagonal = tl.load(slot_k + tile, known, 0.0), row[:, None] == row[None, :]
    key = tl.load(slot_k + r * K + channel).to(tl.float32)
    akk = product(tl.trans(rounded(key[:, None] * fade, OPERAND)), keys)
    aqk = product(tl.trans(rounded(query[:, None] * fade, OPERAND)), keys)
    return tl.sum(tl.where(diagonal, akk, 0.0), 0), tl.sum(tl.where(diagonal, aqk, 0.0), 0)


@triton.jit
def fold_chunk(
    state, slot_k, slot_g, slot_b, solve, r,
    K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Moves the state on over the chunk whose last row r is, if it is that; BV value channels at a time.

    It reads and computes again what the last row had, and few channels at a time: registers would be taken from every
    row.
    """
    if r == C - 1:
        tl.debug_barrier()  # other threads have written the last row
        row, channel, value = tl.arange(0, C), tl.arange(0, K), tl.arange(0, BV)
        tile = row[None, :] * K + channel[:, None]
        cum = cumulative(tl.load(slot_g + tile), C, OPERAND)
        at_end = tl.sum(tl.where((row == C - 1)[None, :], cum, 0.0), 1)
        k_end = tl.trans(rounded(tl.load(slot_k + tile).to(tl.float32) * exponential(at_end[:, None] - cum), OPERAND))
        states, rows = state + (channel[None, :] * V + value[:, None]), slot_b + (row[None, :] * V + value[:, None])
        for block in range(0, V, BV):
            new = rounded(product(tl.load(rows + block), solve), OPERAND)
            moved = product(new, k_end, acc=tl.load(states + block) * exponential(at_end)[None, :])
            tl.store(states + block, moved)


@triton.jit
def recurrent_row(state, v, write, key, query, decay, K: tl.constexpr, V: tl.constexpr):
    """The recurrence itself: `S ← Diag(decay) S`, `S ← S + β k (v − Sᵀk)ᵀ`, `o = Sᵀq`; by halves, to save registers."""
    low = _recurrent_half(state, v, write, key, query, decay, 0, K, V)
    high = _recurrent_half(state, v, write, key, query, decay, V // 2, K, V)
    return joined(low, high)


@triton.jit
def _recurrent_half(state, v, write, key, query, decay, first, K: tl.constexpr, V: tl.constexpr):
    value = first + tl.arange(0, V // 2)
    state += tl.arange(0, K)[None, :] * V + value[:, None]
    s = tl.load(state) * decay[None, :]
    s += (write * (tl.gather(v, value, 0) - tl.sum(s * key[None, :], 1)))[:, None] * key[None, :]
    tl.store(state, s)
    return tl.sum(s * query[None, :], 1)


@triton.jit
def decode_kernel(
    qkv, g, beta, out_gate, conv_weight, a_log, dt_bias, norm_weight, out,
    window, state, slot_k, slot_g, slot_l, slot_b, slots, position,
    qkv_stride, g_stride, beta_stride, gate_stride, scale, lower_bound, eps,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr,
    GATE: tl.constexpr, OPERAND: tl.constexpr, ANCHOR: tl.constexpr, REPLAY: tl.constexpr,
    PREFETCH: tl.constexpr, BULK: tl.constexpr, FOLD: tl.constexpr,
):  # fmt: skip
    b, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    slot = tl.load(slots + b).to(tl.int64)
    row, channel, value = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    out += (b * H + head) * V
    if slot < 0:
        tl.store(out + value, tl.zeros([V], tl.float32).to(out.dtype.element_ty))
        return
    home = slot * H + head
    state += home * K * V
    at = tl.load(position + b)
    r = (at % C).to(tl.int32)

    D: tl.constexpr = 2 * H * K + H * V
    window += slot * WIDTH * D
    # All that is read but the state is asked for here: memory is far.
    gate = tl.load(g + b * g_stride + head * K + channel).to(tl.float32)
    write = sigmoid(tl.load(beta + b * beta_stride + head).to(tl.float32))
    opening = tl.load(out_gate + b * gate_stride + head * V + value).to(tl.float32)
    weight = tl.load(norm_weight + value).to(tl.float32)
    qkv += b * qkv_stride
    q_channel, k_channel, v_channel = head * K + channel, (H + head) * K + channel, 2 * H * K + head * V + value
    q_x, k_x, v_x = tl.load(qkv + q_channel), tl.load(qkv + k_channel), tl.load(qkv + v_channel)
    taps = conv_weight + WIDTH - 1
    if REPLAY:
        slot_k, slot_g, slot_b = slot_k + home * C * K, slot_g + home * C * K, slot_b + home * C * V
        tile, square = row[None, :] * K + channel[:, None], home * C * C + (row[:, None] * C + row[None, :])
        is_r, past = (row == r)[None, :], (row < r)[None, :]
        keys, step = tl.load(slot_k + tile, past, 0.0), tl.load(slot_g + tile, past, 0.0)
        lower = tl.load(slot_l + square, (row < r)[:, None], 0.0)
        rows = slot_b + (row[None, :] * V + tl.arange(0, BV)[:, None])
        low_rows, high_rows = tl.load(rows, past, 0.0), tl.load(rows + (V - BV), past, 0.0)
    query = convolved(q_x, window, taps + q_channel * WIDTH, q_channel, at, D, WIDTH)
    key = convolved(k_x, window, taps + k_channel * WIDTH, k_channel, at, D, WIDTH)
    v = convolved(v_x, window, taps + v_channel * WIDTH, v_channel, at, D, WIDTH)

    # Vectors of channels cost a thread one element each; they become tiles for products only.
    new_step = tl.sum(log_decay(gate[:, None], a_log, dt_bias, lower_bound, head, GATE, K), 1)
    pair = rounded(two_columns(shared(key), shared(query), C), qkv.dtype.element_ty)
    _, rstd = unit_columns(pair, True, C, OPERAND)
    key = rounded(key * tl.sum(tl.where(row == 0, rstd, 0.0), 0), OPERAND).to(tl.float32)
    query = rounded(query * tl.sum(tl.where(row == 1, rstd, 0.0), 0), OPERAND).to(tl.float32) * scale

    if REPLAY:
        tl.store(slot_k + r * K + channel, rounded(key, OPERAND))
        tl.store(slot_g + r * K + channel, new_step)
        key, query = shared(key), shared(query)
        keys = tl.where(is_r, key[:, None], keys.to(tl.float32))
        step = tl.where(is_r, shared(new_step)[:, None], step)
        cum = cumulative(step, C, OPERAND)
        at_r = column_of(cum, r)

        up = exponential(at_r + ANCHOR * LN2)
        k_up, q_up = rounded(key * up, OPERAND), rounded(query * up, OPERAND)
        if PREFETCH == "scores":
            prefetch(state, 4 * K * V, BULK)
        scores = product(tl.trans(two_columns(k_up, q_up, C)), rounded(keys * fall(cum, ANCHOR), OPERAND))
        akk, aqk = row_of(scores, 0), row_of(scores, 1)
        inputs = two_columns(lowered(k_up, ANCHOR, OPERAND), lowered(q_up, ANCHOR, OPERAND), C)
        if tl.max(tl.where(at_r < -2 * ANCHOR * LN2, 1, 0), 0) > 0:
            akk, aqk = far_row(slot_k, slot_g, query, r, K, C, OPERAND)

        akk = tl.where(row < r, write * akk, 0.0)
        tl.store(slot_l + home * C * C + r * C + row, akk)
        lower = tl.where((row == r)[:, None], akk[None, :], lower)
        if PREFETCH == "inverse":
            prefetch(state, 4 * K * V, BULK)
        solve = tl.trans(rounded(unit_lower_inverse(lower, C), OPERAND))
        attend = rounded(tl.where((row == 1)[None, :], tl.where(row <= r, aqk, 0.0)[:, None], 0.0), OPERAND)
        v = shared(v)
        o = replayed_values(state, slot_b, low_rows, v, 0, write, inputs, solve, attend, r, K, V, BV, OPERAND)
        if BV < V:
            high = replayed_values(state, slot_b, high_rows, v, BV, write, inputs, solve, attend, r, K, V, BV, OPERAND)
            o = joined(o, high)
    else:
        o = recurrent_row(state, v, write, shared(key), shared(query), shared(exponential(new_step)), K, V)
    o = rounded(o, qkv.dtype.element_ty)
    squares = column_squares(settled(tl.where((row == 0)[None, :], o[:, None], tl.zeros([V, C], o.dtype))), C)
    rms = tl.sum(tl.where(row == 0, norm_scale(squares, eps, V, C), 0.0), 0)
    tl.store(out + value, rounded(gated(o.to(tl.float32), rms, weight, opening), out.dtype.element_ty))
    if REPLAY:
        fold_chunk(state, slot_k, slot_g, slot_b, solve, r, K, V, FOLD, C, OPERAND)


@torch.no_grad()
def decode_step(
    qkv: Tensor,
    g: Tensor,
    beta: Tensor,
    out_gate: Tensor,
    *,
    conv_weight: Tensor,
    gate: Gate,
    norm_weight: Tensor,
    eps: float,
    window: Tensor,
    state: SlotState,
    slots: Tensor,
    position: Tensor,
    scale: float | None = None,
    recurrent: bool = False,
) -> Tensor:
    """From a layer's projections of one token of each of B sequences to the input of its output projection.

    Nothing waits for the device and no size depends on its data, so the call can be captured in a CUDA graph.

    Args:
        qkv: `[B, 2·H·K + H·V]`, inputs of the convolution: q, k, v side by side.  g: `[B, H, K]` gate inputs.
        beta: `[B, H]` logits.  out_gate: `[B, H, V]` before its sigmoid.
        conv_weight: `[2·H·K + H·V, W]`.  norm_weight: `[V]`.  eps: of the output norm.
        window: `[S, W, 2·H·K + H·V]` ring of inputs.  state: of S slots. Both are updated in place.
        slots: `[B]` slot of each sequence, all different; below 0 for a row that stands idle (its output is 0).
        position: `[B]` index of the token in its sequence.
        recurrent: update the state with every token instead of replaying the chunk. A sequence must be decoded in one
            form from a chunk boundary on.

    Returns:
        `[B, H, V]` in the dtype of `out_gate`.

    Raises:
        ValueError: head dims, dtypes or shapes the kernel does not take.
    """
    batch, heads, key_dim = g.shape
    value_dim, width = out_gate.shape[-1], conv_weight.shape[-1]
    channels = 2 * heads * key_dim + heads * value_dim
    if key_dim not in HEAD_DIMS or value_dim not in HEAD_DIMS or qkv.dtype not in FLOATS:
        got = f"K {key_dim}, V {value_dim}, {qkv.dtype}"
        raise ValueError(f"decode takes head dims {HEAD_DIMS} and fp32, bf16, fp16: {got}")
    if qkv.shape != (batch, channels) or conv_weight.shape[0] != channels or window.shape[1:] != (width, channels):
        shapes = (tuple(qkv.shape), tuple(conv_weight.shape), tuple(window.shape))
        raise ValueError(f"qkv, conv_weight and window must be [B, D], [D, W], [S, W, D] with D = {channels}: {shapes}")
    if not 2 <= width <= 4:
        raise ValueError(f"conv_weight {tuple(conv_weight.shape)} and window must have W from 2 to 4")
    wanted = {"beta": (batch, heads), "out_gate": (batch, heads, value_dim), "norm_weight": (value_dim,)}
    tensors = {"beta": beta, "out_gate": out_gate, "norm_weight": norm_weight, "slots": slots, "position": position}
    for name, shape in (wanted | {"slots": (batch,), "position": (batch,)}).items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensors[name].shape)}")
    if state.state.shape[1:] != (heads, key_dim, value_dim):
        raise ValueError(f"state must hold [H,K,V] = {(heads, key_dim, value_dim)}, got {tuple(state.state.shape[1:])}")
    if gate.a_log is not None and gate.dt_bias is not None:
        if (gate.a_log.numel(), gate.dt_bias.numel()) != (heads, heads * key_dim):
            raise ValueError(f"the gate must have A_log of {heads} and dt_bias of {heads * key_dim} elements")
    slots, position, norm_weight = slots.contiguous(), position.contiguous(), norm_weight.contiguous()
    if window.dtype != qkv.dtype or not window.is_contiguous() or not conv_weight.is_contiguous():
        raise ValueError(f"window must be contiguous and {qkv.dtype} like qkv, conv_weight contiguous")
    for name, x, inner in (("qkv", qkv, 1), ("g", g, key_dim), ("out_gate", out_gate, value_dim), ("beta", beta, 1)):
        if batch and (x.stride(-1) != 1 or (x.dim() == 3 and x.stride(1) != inner)):
            raise ValueError(f"{name} must be contiguous within a token, its strides are {x.stride()}")
    out = out_gate.new_empty(batch, heads, value_dim)
    operand = state.k.dtype
    if batch:
        decode_kernel[(batch * heads,)](
            qkv, g, beta, out_gate, conv_weight, gate.a_log, gate.dt_bias, norm_weight, out,
            window, state.state, state.k, state.g, state.lower, state.values, slots, position,
            qkv.stride(0), g.stride(0), beta.stride(0), out_gate.stride(0),
            key_dim**-0.5 if scale is None else scale, gate.lower_bound, eps,
            H=heads, K=key_dim, V=value_dim, BV=value_dim // 2 if value_dim > 64 else value_dim, C=CHUNK, WIDTH=width,
            GATE=gate.kind, OPERAND=TRITON_DTYPES[operand], ANCHOR=ANCHOR[operand], REPLAY=not recurrent,
            PREFETCH="scores" if batch * heads <= FEW * multiprocessors(qkv.device) else "inverse",
            BULK=capability(qkv.device) >= 9, FOLD=min(value_dim, 32),
            num_warps=4, num_stages=1, enable_fp_fusion=False, **registers(128),
        )  # fmt: skip
    return out
