"""Short causal depthwise convolution followed by SiLU, over packed sequences and one token at a time.

Both forms add the taps in the same order, so that a token's output is the same number in prefill, training and decode.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def short_conv(x: Tensor, weight: Tensor, position: Tensor) -> Tensor:
    """`silu(Σ_s weight[:, W-1-s] · x[t-s])`, taps that reach before a sequence's first token left out.

    Args:
        x: `[T, D]` packed.  weight: `[D, W]`, last tap on the current token.
        position: `[T]` index of each token in its own sequence.

    Returns:
        `[T, D]`.
    """
    # W-1 zero rows in front of every sequence: a tap that reaches too far then reads a zero, without a mask.
    gap = weight.shape[1] - 1
    row = torch.arange(len(x), device=x.device) + gap * (position == 0).cumsum(0)
    return F.silu(_Taps.apply(x, weight, row))


def short_conv_piece(x: Tensor, weight: Tensor, cu_seqlens: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """The same for the next tokens of sequences whose last inputs are known; no gradient.

    Args:
        x: `[T, D]`, the new tokens of N sequences, packed with bounds `cu_seqlens` `[N+1]`.  weight: `[D, W]`.
        window: `[N, W-1, D]` the inputs before them, oldest first.

    Returns:
        `[T, D]`, and the window after them.
    """
    gap, count = weight.shape[1] - 1, len(window)
    before = gap * torch.arange(1, count + 1, device=x.device)
    row = torch.arange(len(x), device=x.device) + torch.repeat_interleave(before, cu_seqlens.diff())
    last = torch.arange(-gap, 0, device=x.device)
    spaced = x.new_empty(len(x) + gap * count, x.shape[1])
    spaced[row] = x
    spaced[(cu_seqlens[:-1] + before)[:, None] + last] = window
    out = F.silu(_weighted(spaced, weight.t().contiguous()).index_select(0, row - gap))
    return out, spaced[(cu_seqlens[1:] + before)[:, None] + last]


def _weighted(spaced: Tensor, taps: Tensor) -> Tensor:
    """Sum over taps `[W, D]` of rows `[R, D]`, for all rows but the first W-1."""
    gap, end = len(taps) - 1, len(spaced)
    out = spaced[gap:] * taps[gap]
    for shift in range(1, gap + 1):
        out.addcmul_(spaced[gap - shift : end - shift], taps[gap - shift])
    return out


class _Taps(torch.autograd.Function):
    """The sum over taps. Written out, because autograd would keep and walk each shifted copy by itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, row: Tensor) -> Tensor:
        gap, taps = weight.shape[1] - 1, weight.t().contiguous()
        spaced = x.new_zeros(int(row[-1]) + 1 if len(row) else gap, x.shape[1])
        spaced.index_copy_(0, row, x)
        ctx.save_for_backward(spaced, taps, row)
        return _weighted(spaced, taps).index_select(0, row - gap)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        spaced, taps, row = ctx.saved_tensors
        gap, end = len(taps) - 1, len(spaced)
        grad = torch.zeros_like(spaced[gap:]).index_copy_(0, row - gap, grads[0])
        grad_spaced, grad_taps, product = torch.zeros_like(spaced), torch.empty_like(taps), torch.empty_like(grad)
        for shift in range(gap + 1):
            seen = slice(gap - shift, end - shift)
            grad_spaced[seen].addcmul_(grad, taps[gap - shift])
            torch.sum(torch.mul(grad, spaced[seen], out=product), 0, out=grad_taps[gap - shift])
        return grad_spaced.index_select(0, row), grad_taps.t(), None


def short_conv_step(x: Tensor, weight: Tensor, window: Tensor) -> Tensor:
    """The same for one new token of each of B sequences; `window` is updated in place.

    Args:
        x: `[B, D]`.  weight: `[D, W]`.  window: `[B, W-1, D]`, the inputs before it, oldest first, zeros at the start.

    Returns:
        `[B, D]`.
    """
    taps = weight.t().contiguous()
    gap = len(taps) - 1
    out = x * taps[gap]
    for shift in range(1, gap + 1):
        out.addcmul_(window[:, gap - shift], taps[gap - shift])
    for i in range(gap - 1):
        window[:, i] = window[:, i + 1]
    window[:, -1] = x
    return F.silu(out)


def last_inputs(x: Tensor, cu_seqlens: Tensor, width: int) -> Tensor:
    """The window `[N, W-1, D]` each packed sequence leaves behind for `short_conv_step`, zeros before its start."""
    ends = cu_seqlens[1:, None] + torch.arange(1 - width, 0, device=x.device)
    inside = ends >= cu_seqlens[:-1, None]
    return x[ends.clamp_min(0)] * inside.unsqueeze(-1).to(x.dtype)
