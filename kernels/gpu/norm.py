"""Head-wise RMSNorm with a sigmoid gate, as Triton kernels, forward and backward.

`norm_scale` and `gated` are the one place where it is computed. The decode kernel calls them too, so that a token's
output is the same number in prefill, training and decode. All of it is fp32 whatever the dtype of the inputs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltarl.kernels.gpu.ops import column_squares, rounded, sigmoid

ROWS = 16  # rows of a forward tile, as many as a chunk has
BACKWARD_TILE = 1024  # elements
MAX_PARTIALS = 4096  # backward programs, hence rows of the partial sums of the weight gradient


@triton.jit
def norm_scale(squares, eps, V: tl.constexpr, ROWS: tl.constexpr):
    """`1 / sqrt(mean(x²) + eps)` `[ROWS]` of the sums of squares of V values."""
    return tl.rsqrt(tl.fma(squares, tl.full([ROWS], 1.0 / V, tl.float32), tl.zeros([ROWS], tl.float32) + eps))


@triton.jit
def gated(x, scale, weight, gate):
    """`weight · scale x · sigmoid(gate)`, all fp32."""
    return x * scale * weight * sigmoid(gate)


@triton.jit(do_not_specialize=["total"])
def _forward_kernel(x, gate, weight, out, total, eps, ROWS: tl.constexpr, V: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * ROWS
    col, row = tl.arange(0, V), tl.arange(0, ROWS)
    inside = (row < total - first)[None, :]
    # 64-bit offsets only where they are the same for the whole tile.
    at = row[None, :] * V + col[:, None]
    skip = first * V
    gates = tl.load(gate + skip + at, mask=inside, other=0.0).to(tl.float32)
    weights = tl.load(weight + col).to(tl.float32)[:, None]
    xs = tl.load(x + skip + at, mask=inside, other=0.0)
    y = gated(xs.to(tl.float32), norm_scale(column_squares(xs, ROWS), eps, V, ROWS)[None, :], weights, gates)
    tl.store(out + skip + at, rounded(y, out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["total", "tiles"])
def _backward_kernel(
    x, gate, weight, grad, grad_x, grad_gate, grad_weight, total, tiles, eps, ROWS: tl.constexpr, V: tl.constexpr
):
    """`tiles` tiles one after the other; the weight's gradient is summed over rows at the end only."""
    cols = tl.arange(0, V)
    rows = tl.arange(0, ROWS)[:, None]
    at = rows * V + cols[None, :]
    w = tl.load(weight + cols).to(tl.float32)[None, :]
    sums = tl.full([ROWS, V], 0.0, tl.float32)
    for i in range(tiles):
        first = (tl.program_id(0).to(tl.int64) * tiles + i) * ROWS
        inside = (rows < total - first) & (cols < V)[None, :]
        skip = first * V
        u = tl.load(x + skip + at, mask=inside, other=0.0).to(tl.float32)
        s = sigmoid(tl.load(gate + skip + at, mask=inside, other=0.0).to(tl.float32))
        d = tl.load(grad + skip + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(u * u, 1) * (1.0 / V) + eps)[:, None]
        normed = u * scale
        open_grad = d * s  # of weight · normed
        sums = tl.fma(open_grad, normed, sums)
        d_normed = open_grad * w
        d_gate = d_normed * normed * (1.0 - s)
        along = tl.sum(d_normed * normed, 1) * (1.0 / V)
        d_x = scale * tl.fma(-normed, along[:, None], d_normed)
        tl.store(grad_x + skip + at, rounded(d_x, grad_x.dtype.element_ty), mask=inside)
        tl.store(grad_gate + skip + at, rounded(d_gate, grad_gate.dtype.element_ty), mask=inside)
    tl.store(grad_weight + tl.program_id(0).to(tl.int64) * V + cols, tl.sum(sums, 0))


class _GatedNorm(torch.autograd.Function):
    """Saves the inputs only: the scale of a row is cheap once the row is read, and the backward reads it anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, gate, weight)
        ctx.eps = eps
        dim, out = x.shape[-1], torch.empty_like(gate)
        total = x.numel() // dim
        if total:
            _forward_kernel[(triton.cdiv(total, ROWS),)](
                x, gate, weight, out, total, eps, ROWS=ROWS, V=dim, num_warps=max(1, dim // 32)
            )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, weight = ctx.saved_tensors
        grad_x, grad_gate = torch.empty_like(x), torch.empty_like(gate)
        dim = x.shape[-1]
        total, rows = x.numel() // dim, BACKWARD_TILE // dim
        tiles = max(1, triton.cdiv(triton.cdiv(total, rows), MAX_PARTIALS))
        partial = torch.empty(triton.cdiv(total, rows * tiles), dim, dtype=torch.float32, device=x.device)
        if total:
            _backward_kernel[(len(partial),)](
                x,
                gate,
                weight,
                grads[0].contiguous(),
                grad_x,
                grad_gate,
                partial,
                total,
                tiles,
                ctx.eps,
                ROWS=rows,
                V=dim,
                num_warps=4,
            )
        return grad_x, grad_gate, partial.sum(0).to(weight.dtype), None


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`weight · x / sqrt(mean(x²) + eps) · sigmoid(gate)`, the mean over the last dimension.

    Args:
        x: `[T, H, V]`, V a power of two from 16 to 256.  gate: `[T, H, V]`.  weight: `[V]`, shared by the heads.

    Returns:
        `[T, H, V]` in the dtype of `gate`.
    """
    dim = x.shape[-1]
    if dim not in (16, 32, 64, 128, 256):
        raise ValueError(f"x {tuple(x.shape)} must end in a power of two from 16 to 256")
    if gate.shape != x.shape:
        raise ValueError(f"gate {tuple(gate.shape)} must have the shape of x {tuple(x.shape)}")
    if weight.shape != (dim,):
        raise ValueError(f"weight {tuple(weight.shape)} must be [V] = ({dim},)")
    return _GatedNorm.apply(x.contiguous(), gate.contiguous(), weight.contiguous(), eps)
