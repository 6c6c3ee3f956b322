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

from deltarl.kernels.gpu.norm import gated_norm_columns
from deltarl.kernels.gpu.ops import TRITON_DTYPES, product, rounded, sigmoid, silu
from deltarl.kernels.gpu.prepare import LIMIT
from deltarl.kernels.gpu.rows import cumulative, log_decay, unit_columns, unit_lower_inverse
from deltarl.kernels.gpu.slots import SlotState


@triton.jit
def convolved(x, weight, ring, channel, exists, position, D: tl.constexpr, WIDTH: tl.constexpr):
    """The short convolution of one token for a tile of channels, rounded as the inputs are; its input joins the ring.

    x: the token's row.  ring: the sequence's `[W, D]`, input of position p at index p % W.  exists: where 0 comes out.
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
    return rounded(silu(conv_taps(x0.to(tl.float32), x1, x2, x3, w0, w1, w2, w3, WIDTH)), x0.dtype)


@triton.jit
def _remembered(ring, channel, exists, position, D: tl.constexpr, WIDTH: tl.constexpr):
    known = exists & (channel * 0 + position >= 0)
    return tl.load(ring + (tl.maximum(position, 0) % WIDTH) * D + channel, known, 0.0).to(tl.float32)


@triton.jit
def decode_kernel(
    qkv, g, beta, out_gate, conv_weight, a_log, dt_bias, norm_weight, out,
    window, state, slot_k, slot_g, slot_l, slot_b, slots, position,
    qkv_stride, g_stride, beta_stride, gate_stride, scale, lower_bound, eps,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr,
    GATE: tl.constexpr, OPERAND: tl.constexpr, LIMIT: tl.constexpr, REPLAY: tl.constexpr,
):  # fmt: skip
    b, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    slot = tl.load(slots + b).to(tl.int64)
    row, channel, value = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    out += (b * H + head) * V + value
    if slot < 0:
        tl.store(out, tl.zeros([V], tl.float32).to(out.dtype.element_ty))
        return
    home = slot * H + head
    state += home * K * V + channel[None, :] * V + value[:, None]

    at = tl.load(position + b)
    D: tl.constexpr = 2 * H * K + H * V
    window += slot * WIDTH * D
    qkv += b * qkv_stride
    # Columns 0 and 1 of a tile: the key and the query.
    is_key, is_query = (row == 0)[None, :], (row == 1)[None, :]
    source = tl.where(is_key, H * K, 0) + head * K + channel[:, None]
    pair = convolved(qkv, conv_weight, window, source, is_key | is_query, at, D, WIDTH)
    pair, _ = unit_columns(pair, True, C, OPERAND)
    pair = tl.where(is_query, pair * scale, pair)
    key = tl.sum(tl.where(is_key, pair, 0.0), 1)[:, None]
    v = convolved(qkv, conv_weight, window, 2 * H * K + head * V + value, value < V, at, D, WIDTH).to(tl.float32)
    gate = tl.load(g + b * g_stride + head * K + channel).to(tl.float32)[:, None]
    new_step = log_decay(gate, a_log, dt_bias, lower_bound, head, GATE, K)
    write = sigmoid(tl.load(beta + b * beta_stride + head).to(tl.float32))

    if REPLAY:
        r = (at % C).to(tl.int32)
        is_r, past = (row == r)[None, :], (row < r)[None, :]
        tile = (home * C + row)[None, :] * K + channel[:, None]
        keys = tl.where(is_r, key, tl.load(slot_k + tile, past, 0.0).to(tl.float32))
        step = tl.where(is_r, new_step, tl.load(slot_g + tile, past, 0.0))
        tl.store(slot_k + tile, rounded(keys, OPERAND), is_r)
        tl.store(slot_g + tile, step, is_r)
        cum = cumulative(step, C, OPERAND)
        cum_r = tl.sum(tl.where(is_r, cum, 0.0), 1)[:, None]

        raised = rounded(pair * tl.exp(cum_r), OPERAND)
        k_down = rounded(keys * tl.exp(tl.minimum(-cum, LIMIT)), OPERAND)
        scores = product(tl.trans(raised), k_down)
        akk = tl.sum(tl.where((row == 0)[:, None], scores, 0.0), 0)
        aqk = tl.sum(tl.where((row == 1)[:, None], scores, 0.0), 0)
        if tl.max(tl.where(cum_r < -LIMIT, 1, 0)) > 0:
            # As `far_scores` has it, but for one row and all columns at once: those columns stand on the diagonal.
            fade = tl.exp(tl.minimum(cum_r - cum, 0.0))
            query = tl.sum(tl.where(is_query, pair, 0.0), 1)[:, None]
            plain, diagonal = rounded(keys, OPERAND), row[:, None] == row[None, :]
            akk = tl.sum(tl.where(diagonal, product(tl.trans(rounded(key * fade, OPERAND)), plain), 0.0), 0)
            aqk = tl.sum(tl.where(diagonal, product(tl.trans(rounded(query * fade, OPERAND)), plain), 0.0), 0)

        square = (home * C + row)[:, None] * C + row[None, :]
        new_lower = write * tl.where(row < r, akk, 0.0)[None, :]
        lower = tl.where((row == r)[:, None], new_lower, tl.load(slot_l + square, (row < r)[:, None], 0.0))
        tl.store(slot_l + square, lower, (row == r)[:, None])
        solve = rounded(unit_lower_inverse(lower, C, OPERAND), OPERAND)

        read = product(rounded(tl.load(state), OPERAND), raised)
        k_read, q_read = tl.sum(tl.where(is_key, read, 0.0), 1), tl.sum(tl.where(is_query, read, 0.0), 1)
        tall = (home * C + row)[None, :] * V + value[:, None]
        rows = tl.where(is_r, rounded(write * (v - k_read), OPERAND)[:, None], tl.load(slot_b + tall, past, 0.0))
        tl.store(slot_b + tall, rows, is_r)
        new = rounded(product(rows, tl.trans(solve)), OPERAND)
        attend = tl.where((row == r)[:, None], tl.where(row <= r, aqk, 0.0)[None, :], 0.0)
        o = product(new, tl.trans(rounded(attend, OPERAND)), acc=tl.where(is_r, q_read[:, None], 0.0))
        o = tl.sum(tl.where(is_r, o, 0.0), 1)
        if r == C - 1:
            k_end = rounded(keys * tl.exp(cum_r - cum), OPERAND)
            decay = tl.exp(tl.sum(tl.where(is_r, cum, 0.0), 1))[None, :]
            tl.store(state, product(new, tl.trans(k_end), acc=tl.load(state) * decay))
    else:
        query = tl.sum(tl.where(is_query, pair, 0.0), 1)
        before = tl.load(state) * tl.exp(tl.sum(new_step, 1))[None, :]
        before += (write * (v - tl.sum(before * tl.sum(key, 1)[None, :], 1)))[:, None] * tl.sum(key, 1)[None, :]
        o = tl.sum(before * query[None, :], 1)
        tl.store(state, before)

    gate = tl.load(out_gate + b * gate_stride + head * V + value).to(tl.float32)
    o = tl.where(is_key, rounded(o, qkv.dtype.element_ty)[:, None], tl.zeros([V, C], qkv.dtype.element_ty))
    y = gated_norm_columns(o, gate[:, None], tl.load(norm_weight + value).to(tl.float32)[:, None], eps, V, C)
    tl.store(out[:, None] + row[None, :] * 0, rounded(y, out.dtype.element_ty), is_key)


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
            H=heads, K=key_dim, V=value_dim, C=CHUNK, WIDTH=width,
            GATE=gate.kind, OPERAND=TRITON_DTYPES[operand], LIMIT=LIMIT[operand], REPLAY=not recurrent,
            num_warps=max(4, value_dim // 16), num_stages=1, enable_fp_fusion=False,
        )  # fmt: skip
    return out
