"""One token of a KDA layer in one launch: convolution, norm, gate, state, output norm. One program per token and head.

In the replay form the token is computed as the next row of the chunk that the learner will compute (`prepare`, `scan`),
by the same operations on tiles of the same shape, so that its numbers are those of that row to the bit. A slot keeps the
state at the last chunk boundary and the rows since; the state is read for every token but written once per chunk. The
recurrent form updates the state with every token: simpler, close to but not exactly the same numbers.

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
from deltarl.kernels.gpu.ops import TRITON_DTYPES, column_squares, pinned, product, registers, rounded, sigmoid, silu
from deltarl.kernels.gpu.prepare import ANCHOR, LN2, fall, lowered
from deltarl.kernels.gpu.rows import cumulative, log_decay, unit_columns, unit_lower_inverse
from deltarl.kernels.gpu.slots import SlotState


@triton.jit
def convolved(x, weight, ring, channel, exists, position, D: tl.constexpr, WIDTH: tl.constexpr):
    """The short convolution of one token for some channels, rounded as its inputs but fp32; its input joins the ring.

    x: the token's row.  ring: the sequence's `[W, D]`, input of position p at index p % W.  exists: else 0.
    """
    x0 = tl.load(x + channel, exists, 0.0)
    taps = weight + channel * WIDTH + WIDTH - 1
    w0, w1 = tl.load(taps, exists, 0.0).to(tl.float32), tl.load(taps - 1, exists, 0.0).to(tl.float32)
    x1 = _remembered(ring, channel, exists, position - 1, D, WIDTH)
    w2, x2, w3, x3 = w1, x1, w1, x1
    if WIDTH > 2:
        w2 = tl.load(taps - 2, exists, 0.0).to(tl.float32)
        x2 = _remembered(ring, channel, exists, position - 2, D, WIDTH)
    if WIDTH > 3:
        w3 = tl.load(taps - 3, exists, 0.0).to(tl.float32)
        x3 = _remembered(ring, channel, exists, position - 3, D, WIDTH)
    tl.store(ring + (position % WIDTH) * D + channel, x0, exists)
    y = rounded(silu(conv_taps(x0.to(tl.float32), x1, x2, x3, w0, w1, w2, w3, WIDTH)), x0.dtype)
    return pinned(y.to(tl.float32))


@triton.jit
def _remembered(ring, channel, exists, position, D: tl.constexpr, WIDTH: tl.constexpr):
    known = exists & (channel * 0 + position >= 0)
    return tl.load(ring + (tl.maximum(position, 0) % WIDTH) * D + channel, known, 0.0).to(tl.float32)


@triton.jit
def replayed_row(
    state, slot_b, v, write, raised, solve, attend, k_end, decay, r,
    V: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Row r of `deltarl.kernels.gpu.scan` for BV value channels; the last row of a chunk moves the state on.

    state: pointers `[BV, K]`.  slot_b: pointers `[BV, C]`.  v: `[BV]`.  raised: `[K, C]`, the decayed key and query in
    columns 0 and 1.  solve, attend: T and Aqk transposed `[C, C]`.  k_end: k° `[C, K]`.  decay: `[K]`.
    """
    row = tl.arange(0, C)
    is_r = (row == r)[None, :]
    read = product(rounded(tl.load(state), OPERAND), raised)
    k_read = tl.sum(tl.where(row[None, :] == 0, read, 0.0), 1)
    q_read = tl.sum(tl.where(row[None, :] == 1, read, 0.0), 1)
    new_row = rounded(write * (v - k_read), OPERAND)
    rows = tl.where(is_r, new_row[:, None], tl.load(slot_b, (row < r)[None, :], 0.0))
    tl.store(slot_b, rows, is_r)
    new = rounded(product(rows, solve), OPERAND)
    o = product(new, attend, acc=tl.where(is_r, q_read[:, None], 0.0))
    if r == C - 1:
        tl.store(state, product(new, k_end, acc=tl.load(state) * decay[None, :]))
    return tl.sum(tl.where(is_r, o, 0.0), 1)


@triton.jit
def recurrent_row(state, v, write, key, query, decay):
    """The recurrence itself for some value channels: `S ← Diag(e^g) S`, `S ← S + β k (v − Sᵀk)ᵀ`, `o = Sᵀq`."""
    s = tl.load(state) * decay[None, :]
    s += (write * (v - tl.sum(s * key[None, :], 1)))[:, None] * key[None, :]
    tl.store(state, s)
    return tl.sum(s * query[None, :], 1)


@triton.jit
def decode_kernel(
    qkv, g, beta, out_gate, conv_weight, a_log, dt_bias, norm_weight, out,
    window, state, slot_k, slot_g, slot_l, slot_b, slots, position,
    qkv_stride, g_stride, beta_stride, gate_stride, scale, lower_bound, eps,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr,
    GATE: tl.constexpr, OPERAND: tl.constexpr, ANCHOR: tl.constexpr, REPLAY: tl.constexpr,
):  # fmt: skip
    b, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    slot = tl.load(slots + b).to(tl.int64)
    row, channel, value = tl.arange(0, C), tl.arange(0, K), tl.arange(0, BV)
    out += (b * H + head) * V
    if slot < 0:
        for block in tl.static_range(V // BV):
            tl.store(out + block * BV + value, tl.zeros([BV], tl.float32).to(out.dtype.element_ty))
        return
    home = slot * H + head
    state += home * K * V + (channel[None, :] * V + value[:, None])
    at = tl.load(position + b)
    r = (at % C).to(tl.int32)

    D: tl.constexpr = 2 * H * K + H * V
    window += slot * WIDTH * D
    qkv += b * qkv_stride
    gate = tl.load(g + b * g_stride + head * K + channel).to(tl.float32)
    new_step = pinned(log_decay(gate[:, None], a_log, dt_bias, lower_bound, head, GATE, K))
    write = sigmoid(tl.load(beta + b * beta_stride + head).to(tl.float32))
    # Columns 0 and 1 of a tile: the key and the query.
    is_key, is_query = (row == 0)[None, :], (row == 1)[None, :]
    source = tl.where(is_key, H * K, 0) + head * K + channel[:, None]
    pair = convolved(qkv, conv_weight, window, source, is_key | is_query, at, D, WIDTH)
    pair, _ = unit_columns(rounded(pair, qkv.dtype.element_ty), True, C, OPERAND)
    pair = tl.where(is_query, pair * scale, pair)
    key = tl.sum(tl.where(is_key, pair, 0.0), 1)

    if REPLAY:
        is_r, past = (row == r)[None, :], (row < r)[None, :]
        tile = home * C * K + (row[None, :] * K + channel[:, None])
        keys = tl.where(is_r, key[:, None], tl.load(slot_k + tile, past, 0.0).to(tl.float32))
        step = tl.where(is_r, new_step, tl.load(slot_g + tile, past, 0.0))
        tl.store(slot_k + tile, rounded(keys, OPERAND), is_r)
        tl.store(slot_g + tile, step, is_r)
        cum = cumulative(step, C, OPERAND)
        at_r = tl.sum(tl.where(is_r, cum, 0.0), 1)

        raised = rounded(pair * tl.exp(at_r + ANCHOR * LN2)[:, None], OPERAND)
        scores = product(tl.trans(raised), rounded(keys * fall(cum, ANCHOR), OPERAND))
        raised = lowered(raised, ANCHOR, OPERAND)
        akk = tl.sum(tl.where((row == 0)[:, None], scores, 0.0), 0)
        aqk = tl.sum(tl.where((row == 1)[:, None], scores, 0.0), 0)
        if tl.max(tl.where(at_r < -2 * ANCHOR * LN2, 1, 0), 0) > 0:
            # As `far_scores` has it, but for one row and all columns at once: those columns stand on the diagonal.
            fade = tl.exp(tl.minimum(at_r[:, None] - cum, 0.0))
            query = tl.sum(tl.where(is_query, pair, 0.0), 1)
            plain, diagonal = rounded(keys, OPERAND), row[:, None] == row[None, :]
            akk = product(tl.trans(rounded(key[:, None] * fade, OPERAND)), plain)
            akk = tl.sum(tl.where(diagonal, akk, 0.0), 0)
            aqk = product(tl.trans(rounded(query[:, None] * fade, OPERAND)), plain)
            aqk = tl.sum(tl.where(diagonal, aqk, 0.0), 0)

        square = home * C * C + (row[:, None] * C + row[None, :])
        new_lower = write * tl.where(row < r, akk, 0.0)
        lower = tl.load(slot_l + square, (row < r)[:, None], 0.0)
        lower = tl.where((row == r)[:, None], new_lower[None, :], lower)
        tl.store(slot_l + square, lower, (row == r)[:, None])
        solve = tl.trans(rounded(unit_lower_inverse(lower, C, OPERAND), OPERAND))
        aqk = tl.where(row <= r, aqk, 0.0)
        attend = tl.trans(rounded(tl.where((row == r)[:, None], aqk[None, :], 0.0), OPERAND))
        k_end = tl.trans(rounded(keys * tl.exp(at_r[:, None] - cum), OPERAND))
        slot_b += home * C * V + (row[None, :] * V + value[:, None])
        decay = tl.exp(at_r)
    else:
        query = tl.sum(tl.where(is_query, pair, 0.0), 1)
        decay = tl.exp(tl.sum(tl.where(is_key, new_step, 0.0), 1))

    squares = tl.zeros([C], tl.float32)
    for block in tl.static_range(V // BV):
        within = block * BV + value
        v = convolved(qkv, conv_weight, window, 2 * H * K + head * V + within, within < V, at, D, WIDTH)
        if REPLAY:
            o = replayed_row(
                state + block * BV, slot_b + block * BV, v, write, raised, solve, attend, k_end, decay, r,
                V, BV, C, OPERAND,
            )  # fmt: skip
        else:
            o = recurrent_row(state + block * BV, v, write, key, query, decay)
        o = rounded(pinned(o), qkv.dtype.element_ty)
        column = tl.where(is_key, o[:, None], tl.zeros([BV, C], o.dtype))
        squares = column_squares(column, C, squares)
        if block == 0:
            first = o
        last = o
    rms = tl.sum(tl.where(row == 0, norm_scale(squares, eps, V, C), 0.0), 0)
    for block in tl.static_range(V // BV):
        if block == 0:
            o = first
        else:
            o = last
        within = block * BV + value
        gate = tl.load(out_gate + b * gate_stride + head * V + within).to(tl.float32)
        y = gated(o.to(tl.float32), rms, tl.load(norm_weight + within).to(tl.float32), gate)
        tl.store(out + within, rounded(y, out.dtype.element_ty))


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
    value_dim, width = out_gate.shape[-1], conv_weight.shape[1]
    channels = 2 * heads * key_dim + heads * value_dim
    if key_dim not in HEAD_DIMS or value_dim not in HEAD_DIMS or qkv.dtype not in FLOATS:
        raise ValueError(f"decode takes head dims {HEAD_DIMS} and fp32, bf16, fp16: K {key_dim}, V {value_dim}, {qkv.dtype}")
    if qkv.shape != (batch, channels) or conv_weight.shape[0] != channels or window.shape[1:] != (width, channels):
        shapes = (tuple(qkv.shape), tuple(conv_weight.shape), tuple(window.shape))
        raise ValueError(f"qkv, conv_weight and window must be [B, D], [D, W], [S, W, D] with D = {channels}: {shapes}")
    out = out_gate.new_empty(batch, heads, value_dim)
    operand = state.k.dtype
    if batch:
        decode_kernel[(batch * heads,)](
            qkv, g, beta, out_gate, conv_weight, gate.a_log, gate.dt_bias, norm_weight, out,
            window, state.state, state.k, state.g, state.lower, state.values, slots, position,
            qkv.stride(0), g.stride(0), beta.stride(0), out_gate.stride(0),
            key_dim**-0.5 if scale is None else scale, gate.lower_bound, eps,
            H=heads, K=key_dim, V=value_dim, BV=min(value_dim, 64), C=CHUNK, WIDTH=width,
            GATE=gate.kind, OPERAND=TRITON_DTYPES[operand], ANCHOR=ANCHOR[operand], REPLAY=not recurrent,
            num_warps=4, num_stages=1, enable_fp_fusion=False, **registers(128),
        )  # fmt: skip
    return out
