"""Short causal depthwise convolution followed by SiLU, over packed sequences and one token at a time.

Both forms add the taps in the same order, so that a token's output is the same number in prefill, training and decode.
"""

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
    width = weight.shape[1]
    out = x * weight[:, width - 1]
    for shift in range(1, width):
        # Rows of the previous sequence are cut off by the mask; the zero rows stand in before the first token.
        inside = (position >= shift).to(x.dtype).unsqueeze(-1)
        past = F.pad(x, (0, 0, shift, 0))[: len(x)] * inside
        out = out + past * weight[:, width - 1 - shift]
    return F.silu(out)


def short_conv_step(x: Tensor, weight: Tensor, window: Tensor) -> Tensor:
    """The same for one new token of each of B sequences; `window` is updated in place.

    Args:
        x: `[B, D]`.  weight: `[D, W]`.  window: `[B, W-1, D]`, the inputs before it, oldest first, zeros at the start.

    Returns:
        `[B, D]`.
    """
    width = weight.shape[1]
    out = x * weight[:, width - 1]
    for shift in range(1, width):
        out = out + window[:, -shift] * weight[:, width - 1 - shift]
    for i in range(width - 2):
        window[:, i] = window[:, i + 1]
    window[:, -1] = x
    return F.silu(out)


def last_inputs(x: Tensor, cu_seqlens: Tensor, width: int) -> Tensor:
    """The window `[N, W-1, D]` each packed sequence leaves behind for `short_conv_step`, zeros before its start."""
    ends = cu_seqlens[1:, None] + torch.arange(1 - width, 0, device=x.device)
    inside = ends >= cu_seqlens[:-1, None]
    return x[ends.clamp_min(0)] * inside.unsqueeze(-1).to(x.dtype)
