"""Short causal depthwise convolution followed by SiLU, as Triton kernels, forward and backward.

`conv_taps` is the one place where the taps are added up. The decode kernel calls it too, so that a token's output is
the same number in prefill, training and decode. Sums are fp32 whatever the dtype of the inputs.

What decoding needs of the past is a ring `[S, W, D]` per sequence slot: the input of the token at position p lies at
index p % W. A decode step then writes one entry and reads the others, and no two programs touch the same one.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltarl.kernels.gpu.ops import rounded, sigmoid, silu

FORWARD_ROWS, FORWARD_COLS = 32, 128
# One warp with 4 channels per thread: more would leave too few registers for other warps beside the window carried.
BACKWARD_COLS = 128
RING_COLS = 256
# Rows of one backward program, until there are MAX_PARTIALS programs along T: that bounds the memory of the partial
# sums of the weight gradient.
BACKWARD_ROWS, MAX_PARTIALS = 128, 1024


@triton.jit
def conv_taps(x0, x1, x2, x3, w0, w1, w2, w3, WIDTH: tl.constexpr):
    """`Σ_s w_s · x_s` in fp32, without the SiLU; `x_s` is the input s tokens ago, zero before the sequence's start.

    All operands are fp32 and of one shape, or broadcast to one. Those with s ≥ WIDTH are ignored.
    """
    total = x0 * w0
    total = tl.fma(x1, w1, total)
    if WIDTH > 2:
        total = tl.fma(x2, w2, total)
    if WIDTH > 3:
        total = tl.fma(x3, w3, total)
    return total


@triton.jit
def load_taps(weight, cols, dim, WIDTH: tl.constexpr):
    """`w0 .. w3` for `conv_taps`, fp32 `[COLS]` each, of the weight `[D, W]`; those with s ≥ W repeat `w1`."""
    inside = cols < dim
    last = weight + cols * WIDTH + (WIDTH - 1)
    w0 = tl.load(last, mask=inside, other=0.0).to(tl.float32)
    w1 = tl.load(last - 1, mask=inside, other=0.0).to(tl.float32)
    w2 = w1
    w3 = w1
    if WIDTH > 2:
        w2 = tl.load(last - 2, mask=inside, other=0.0).to(tl.float32)
    if WIDTH > 3:
        w3 = tl.load(last - 3, mask=inside, other=0.0).to(tl.float32)
    return w0, w1, w2, w3


@triton.jit
def _load(at, mask):
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["total"])
def _forward_kernel(
    x, weight, position, out, total, x_stride, dim, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """A tile of tokens by channels; rows before the tile come through the cache."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    rows = tl.arange(0, ROWS)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
    # How far back a row may look. The row number matters where a prompt goes on in the middle of a sequence.
    reach = tl.load(position + first + rows, mask=rows < total - first, other=0)
    reach = tl.minimum(reach, first + rows)[:, None]
    inside = (rows < total - first)[:, None] & (cols < dim)[None, :]
    # 64-bit offsets only where they are the same for the whole tile.
    at = x + first * x_stride + (rows[:, None] * x_stride + cols[None, :])
    x0 = _load(at, inside)
    x1 = _load(at - x_stride, inside & (reach >= 1))
    x2 = x0
    x3 = x0
    if WIDTH > 2:
        x2 = _load(at - 2 * x_stride, inside & (reach >= 2))
    if WIDTH > 3:
        x3 = _load(at - 3 * x_stride, inside & (reach >= 3))
    w0, w1, w2, w3 = load_taps(weight, cols, dim, WIDTH)
    y = silu(conv_taps(x0, x1, x2, x3, w0[None, :], w1[None, :], w2[None, :], w3[None, :], WIDTH))
    tl.store(out + first * dim + (rows[:, None] * dim + cols[None, :]), rounded(y, out.dtype.element_ty), mask=inside)


@triton.jit
def _load_or_remembered(x, ring, first, rows, cols, start, shift, x_stride, dim, inside, WIDTH: tl.constexpr):
    """Input `shift` tokens before row `first + rows`: from this call, or from the ring if it came before this call."""
    here = (rows >= shift)[:, None]
    past = start + rows - shift  # its position in the sequence
    remembered = (rows < shift)[:, None] & (past >= 0)[:, None]
    new = _load(x + (first + rows - shift)[:, None] * x_stride + cols[None, :], inside & here)
    old = _load(ring + (past % WIDTH)[:, None] * dim + cols[None, :], inside & remembered)
    return tl.where(here, new, old)


@triton.jit
def _continue_kernel(
    x, weight, cu_seqlens, position, ring, slots, out, x_stride, dim, WIDTH: tl.constexpr, COLS: tl.constexpr
):
    """The first W-1 outputs of every sequence once more, their taps before this call taken from the ring."""
    sequence = tl.program_id(0)
    first = tl.load(cu_seqlens + sequence).to(tl.int64)
    length = tl.load(cu_seqlens + sequence + 1).to(tl.int64) - first
    if length > 0:
        start = tl.load(position + first).to(tl.int64)
        ring += tl.load(slots + sequence).to(tl.int64) * WIDTH * dim
        rows = tl.arange(0, 4)
        cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
        w0, w1, w2, w3 = load_taps(weight, cols, dim, WIDTH)
        inside = ((rows < length) & (rows < WIDTH - 1))[:, None] & (cols < dim)[None, :]
        x0 = _load(x + (first + rows)[:, None] * x_stride + cols[None, :], inside)
        x1 = _load_or_remembered(x, ring, first, rows, cols, start, 1, x_stride, dim, inside, WIDTH)
        x2 = x0
        x3 = x0
        if WIDTH > 2:
            x2 = _load_or_remembered(x, ring, first, rows, cols, start, 2, x_stride, dim, inside, WIDTH)
        if WIDTH > 3:
            x3 = _load_or_remembered(x, ring, first, rows, cols, start, 3, x_stride, dim, inside, WIDTH)
        y = silu(conv_taps(x0, x1, x2, x3, w0[None, :], w1[None, :], w2[None, :], w3[None, :], WIDTH))
        tl.store(out + (first + rows)[:, None] * dim + cols[None, :], rounded(y, out.dtype.element_ty), mask=inside)


@triton.jit
def _store_ring_kernel(x, cu_seqlens, ring, slots, start, x_stride, dim, WIDTH: tl.constexpr, COLS: tl.constexpr):
    """The last W inputs of every sequence into its slot of the ring."""
    sequence = tl.program_id(0)
    first = tl.load(cu_seqlens + sequence).to(tl.int64)
    length = tl.load(cu_seqlens + sequence + 1).to(tl.int64) - first
    ring += tl.load(slots + sequence).to(tl.int64) * WIDTH * dim
    rows = length - 1 - tl.arange(0, 4)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = ((rows >= 0) & (rows >= length - WIDTH))[:, None] & (cols < dim)[None, :]
    place = rows
    if start is not None:
        place = rows + tl.load(start + sequence).to(tl.int64)
    new = tl.load(x + (first + rows)[:, None] * x_stride + cols[None, :], mask=inside)
    tl.store(ring + (place % WIDTH)[:, None] * dim + cols[None, :], new, mask=inside)


@triton.jit
def _load_row(at, cols, dim, exists):
    """fp32 `[COLS]`, zeros if the row does not exist."""
    # One bound for the channels instead of two masks: a load stays as wide as `dim` allows.
    return tl.load(at + cols, mask=cols < tl.where(exists, dim, 0), other=0.0).to(tl.float32)


@triton.jit
def _store_row(at, value, cols, dim, exists):
    tl.store(at + cols, rounded(value, at.dtype.element_ty), mask=cols < tl.where(exists, dim, 0))


@triton.jit
def _advance(x0, x1, x2, x3, grad, a1, a2, a3, d0, d1, d2, d3, w0, w1, w2, w3, reach, WIDTH: tl.constexpr):
    """One row of the backward: `a_s` collects the gradient of the input s rows ago, `d_s` that of tap s.

    Returns the gradient of the input W-1 rows ago, which is complete with this row, and the a and d of the next row.
    """
    x1 = tl.where(reach >= 1, x1, 0.0)
    x2 = tl.where(reach >= 2, x2, 0.0)
    x3 = tl.where(reach >= 3, x3, 0.0)
    z = conv_taps(x0, x1, x2, x3, w0, w1, w2, w3, WIDTH)
    gate = sigmoid(z)
    # silu' = σ · (1 + z · (1 − σ))
    grad *= gate * tl.fma(z, 1.0 - gate, 1.0)
    d0 = tl.fma(grad, x0, d0)
    d1 = tl.fma(grad, x1, d1)
    # A row belongs to the sequence of the row s before it exactly if its position is s or more.
    done = tl.fma(tl.where(reach >= 1, grad, 0.0), w1, a1)
    if WIDTH > 2:
        d2 = tl.fma(grad, x2, d2)
        a2, done = done, tl.fma(tl.where(reach >= 2, grad, 0.0), w2, a2)
    if WIDTH > 3:
        d3 = tl.fma(grad, x3, d3)
        a3, done = done, tl.fma(tl.where(reach >= 3, grad, 0.0), w3, a3)
    return done, grad * w0, a2, a3, d0, d1, d2, d3


@triton.jit(do_not_specialize=["total", "block"])
def _backward_kernel(
    x,
    weight,
    position,
    grad,
    grad_x,
    grad_taps,
    total,
    block,
    x_stride,
    grad_stride,
    dim,
    WIDTH: tl.constexpr,
    COLS: tl.constexpr,
):
    """`block` tokens by COLS channels, row after row: each row is read, and its SiLU differentiated, once.

    The gradient of a row is complete W-1 rows later, so the loop goes on behind the block. Four rows are loaded before
    any is used, to have enough loads in flight; `block` must be a multiple of four.
    """
    first = tl.program_id(0).to(tl.int64) * block
    # From here on rows count from `first`, in 32 bits: those of the block, and those the loop may read.
    own = tl.minimum(total - first, block).to(tl.int32)
    ahead = tl.minimum(total - first, block + 8).to(tl.int32)
    cols = tl.program_id(1) * COLS + tl.arange(0, COLS)
    w0, w1, w2, w3 = load_taps(weight, cols, dim, WIDTH)
    position += first
    x += first * x_stride
    grad += first * grad_stride
    grad_x += first * dim
    x1 = _load_row(x - x_stride, cols, dim, first >= 1)
    x2 = _load_row(x - 2 * x_stride, cols, dim, first >= 2)
    x3 = _load_row(x - 3 * x_stride, cols, dim, first >= 3)
    a1 = tl.full([COLS], 0.0, tl.float32)
    a2 = a1
    a3 = a1
    d0 = a1
    d1 = a1
    d2 = a1
    d3 = a1
    for i in range(0, own + (WIDTH - 1), 4):
        p0 = tl.load(position + i, mask=i < ahead, other=0)
        p1 = tl.load(position + i + 1, mask=i + 1 < ahead, other=0)
        p2 = tl.load(position + i + 2, mask=i + 2 < ahead, other=0)
        p3 = tl.load(position + i + 3, mask=i + 3 < ahead, other=0)
        at = x + i * x_stride
        u0 = _load_row(at, cols, dim, i < ahead)
        u1 = _load_row(at + x_stride, cols, dim, i + 1 < ahead)
        u2 = _load_row(at + 2 * x_stride, cols, dim, i + 2 < ahead)
        u3 = _load_row(at + 3 * x_stride, cols, dim, i + 3 < ahead)
        at = grad + i * grad_stride
        g0 = _load_row(at, cols, dim, i < ahead)
        g1 = _load_row(at + grad_stride, cols, dim, i + 1 < ahead)
        g2 = _load_row(at + 2 * grad_stride, cols, dim, i + 2 < ahead)
        g3 = _load_row(at + 3 * grad_stride, cols, dim, i + 3 < ahead)
        y0, a1, a2, a3, d0, d1, d2, d3 = _advance(
            u0, x1, x2, x3, g0, a1, a2, a3, d0, d1, d2, d3, w0, w1, w2, w3, p0, WIDTH
        )
        y1, a1, a2, a3, d0, d1, d2, d3 = _advance(
            u1, u0, x1, x2, g1, a1, a2, a3, d0, d1, d2, d3, w0, w1, w2, w3, p1, WIDTH
        )
        y2, a1, a2, a3, d0, d1, d2, d3 = _advance(
            u2, u1, u0, x1, g2, a1, a2, a3, d0, d1, d2, d3, w0, w1, w2, w3, p2, WIDTH
        )
        y3, a1, a2, a3, d0, d1, d2, d3 = _advance(
            u3, u2, u1, u0, g3, a1, a2, a3, d0, d1, d2, d3, w0, w1, w2, w3, p3, WIDTH
        )
        x1 = u3
        x2 = u2
        x3 = u1
        done = i - (WIDTH - 1)
        at = grad_x + done * dim
        _store_row(at, y0, cols, dim, (done >= 0) & (done < own))
        _store_row(at + dim, y1, cols, dim, (done + 1 >= 0) & (done + 1 < own))
        _store_row(at + 2 * dim, y2, cols, dim, (done + 2 >= 0) & (done + 2 < own))
        _store_row(at + 3 * dim, y3, cols, dim, (done + 3 >= 0) & (done + 3 < own))
        if (i < own) & (i + 4 >= own):  # the sums take in the rows of the block only
            inside = cols < dim
            sums = grad_taps + (tl.program_id(0).to(tl.int64) * WIDTH + WIDTH - 1) * dim + cols
            tl.store(sums, d0, mask=inside)
            tl.store(sums - dim, d1, mask=inside)
            if WIDTH > 2:
                tl.store(sums - 2 * dim, d2, mask=inside)
            if WIDTH > 3:
                tl.store(sums - 3 * dim, d3, mask=inside)


class _ShortConv(torch.autograd.Function):
    """Saves the inputs only: the sum over taps is cheaper to form again than to read."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, position: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, position)
        total, dim = x.shape
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        if out.numel():
            _forward_kernel[(triton.cdiv(total, FORWARD_ROWS), triton.cdiv(dim, FORWARD_COLS))](
                x,
                weight,
                position,
                out,
                total,
                x.stride(0),
                dim,
                WIDTH=weight.shape[1],
                ROWS=FORWARD_ROWS,
                COLS=FORWARD_COLS,
                num_warps=4,
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, position = ctx.saved_tensors
        (total, dim), width = x.shape, weight.shape[1]
        grad, grad_x = _unit_stride(grads[0]), torch.empty_like(x, memory_format=torch.contiguous_format)
        block = BACKWARD_ROWS * max(1, triton.cdiv(total, BACKWARD_ROWS * MAX_PARTIALS))
        partial = torch.empty(triton.cdiv(total, block), width, dim, dtype=torch.float32, device=x.device)
        if grad_x.numel():
            _backward_kernel[(len(partial), triton.cdiv(dim, BACKWARD_COLS))](
                x,
                weight,
                position,
                grad,
                grad_x,
                partial,
                total,
                block,
                x.stride(0),
                grad.stride(0),
                dim,
                WIDTH=width,
                COLS=BACKWARD_COLS,
                num_warps=1,
            )
        return grad_x, partial.sum(0).t().to(weight.dtype), None


def short_conv(
    x: Tensor,
    weight: Tensor,
    cu_seqlens: Tensor,
    position: Tensor,
    initial: Tensor | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    """`silu(Σ_s weight[:, W-1-s] · x[t-s])`, taps that reach before a sequence's first token left out.

    A prompt that comes in pieces goes on where it stopped if `initial` and `slots` are given: `position` then counts
    from the prompt's start, and what lies before this call's first token is read from the ring that `store_window`
    keeps. There is no gradient through that.

    Args:
        x: `[T, D]` packed, rows any distance apart.  weight: `[D, W]`, last tap on the current token, W from 2 to 4.
        cu_seqlens: `[N+1]` bounds of the sequences.  position: `[T]` index of each token in its own sequence.
        initial: ring `[S, W, D]` of `x`'s dtype, index p % W holding the input at position p.
        slots: `[N]` entry of `initial` that belongs to each sequence.

    Returns:
        `[T, D]` in the dtype of `x`.
    """
    x = _check_inputs(x, weight)
    if position.shape != x.shape[:1]:
        raise ValueError(f"position {tuple(position.shape)} must be [T] = ({len(x)},)")
    weight, position = weight.contiguous(), position.contiguous()
    if initial is None and slots is None:
        return _ShortConv.apply(x, weight, position)
    if initial is None or slots is None:
        raise ValueError("initial and slots must be given together")
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        raise ValueError("short_conv has no gradient when it continues from a window; call it under torch.no_grad()")
    _check_ring(x, cu_seqlens, initial, slots, weight.shape[1])
    out = _ShortConv.apply(x, weight, position)
    if out.numel():
        _continue_kernel[(len(slots), triton.cdiv(x.shape[1], RING_COLS))](
            x,
            weight,
            cu_seqlens,
            position,
            initial,
            slots,
            out,
            x.stride(0),
            x.shape[1],
            WIDTH=weight.shape[1],
            COLS=RING_COLS,
            num_warps=4,
        )
    return out


def store_window(x: Tensor, cu_seqlens: Tensor, window: Tensor, slots: Tensor, start: Tensor | None = None) -> None:
    """Writes the last min(length, W) inputs of each packed sequence into its entry of the ring, in place.

    Call it after `short_conv`, which reads what it overwrites. Entries of positions that no token has had yet keep
    what was in them; nobody reads those.

    Args:
        x: `[T, D]` packed, what `short_conv` was given.  cu_seqlens: `[N+1]`.
        window: `[S, W, D]` contiguous, dtype of `x`.  slots: `[N]` entries of `window`, all different.
        start: `[N]` position of each sequence's first token in this call; zeros if left out.
    """
    if x.dim() != 2 or window.dim() != 3:
        raise ValueError(f"x {tuple(x.shape)} and window {tuple(window.shape)} must be [T, D] and [S, W, D]")
    x, width = _unit_stride(x), window.shape[1]
    if not 2 <= width <= 4:
        raise ValueError(f"window {tuple(window.shape)} must be [S, W, D] with W from 2 to 4")
    _check_ring(x, cu_seqlens, window, slots, width)
    if start is not None and start.shape != slots.shape:
        raise ValueError(f"start {tuple(start.shape)} must be [N] = {tuple(slots.shape)}")
    if x.numel():
        _store_ring_kernel[(len(slots), triton.cdiv(x.shape[1], RING_COLS))](
            x,
            cu_seqlens,
            window,
            slots,
            start,
            x.stride(0),
            x.shape[1],
            WIDTH=width,
            COLS=RING_COLS,
            num_warps=4,
        )


def _unit_stride(x: Tensor) -> Tensor:
    """Rows may lie apart, as in a slice of a wider projection; neighbours within a row must not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _check_inputs(x: Tensor, weight: Tensor) -> Tensor:
    if x.dim() != 2:
        raise ValueError(f"x {tuple(x.shape)} must be [T, D]")
    if weight.dim() != 2 or weight.shape[0] != x.shape[1] or not 2 <= weight.shape[1] <= 4:
        raise ValueError(f"weight {tuple(weight.shape)} must be [D, W] with D = {x.shape[1]} and W from 2 to 4")
    return _unit_stride(x)


def _check_ring(x: Tensor, cu_seqlens: Tensor, ring: Tensor, slots: Tensor, width: int) -> None:
    if ring.dim() != 3 or ring.shape[1:] != (width, x.shape[1]) or not ring.is_contiguous():
        raise ValueError(f"window {tuple(ring.shape)} must be contiguous [S, W, D] = (S, {width}, {x.shape[1]})")
    if ring.dtype != x.dtype:
        raise ValueError(f"window is {ring.dtype}, x is {x.dtype}; they must be the same")
    if slots.dim() != 1 or cu_seqlens.shape != (len(slots) + 1,):
        raise ValueError(f"slots {tuple(slots.shape)} must be [N], cu_seqlens {tuple(cu_seqlens.shape)} [N+1]")
