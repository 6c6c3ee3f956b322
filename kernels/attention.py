"""Causal attention over packed sequences, for training and prefill."""

import torch
import torch.nn.functional as F
from torch import Tensor

from deltarl.kernels.layout import ChunkLayout

FLASH_DTYPES = (torch.bfloat16, torch.float16)
FLASH_MAX_WIDTH, FLASH_MULTIPLE = 256, 8  # of the head dims that PyTorch's flash attention takes


def packed_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, padded: ChunkLayout, scale: float) -> Tensor:
    """`softmax(scale q kᵀ) v` within each sequence, every token seeing itself and what is before it.

    In bf16 and fp16 on a GPU by PyTorch's flash attention, which reads the sequences where they are; otherwise by its
    `scaled_dot_product_attention`, on sequences padded to the longest.

    Flash attention's backward adds the gradient of q in no fixed order, unless
    `torch.use_deterministic_algorithms(True)` is set.

    Args:
        q, k: `[T, H, Dqk]`.  v: `[T, H, Dv]`, in the same dtype.
        cu_seqlens: `[N+1]` int, bounds of the sequences.
        padded: their layout with one chunk per sequence, at least as long as the longest. Padding on the right is
            never seen by a causal mask.

    Returns:
        `[T, H, Dv]` in the dtype of v.
    """
    if q.is_cuda and q.dtype in FLASH_DTYPES and max(q.shape[-1], v.shape[-1]) <= FLASH_MAX_WIDTH:
        return _flash(q, k, v, cu_seqlens.int(), padded.chunk_size, scale)
    q, k, v = (padded.to_chunks(t) for t in (q, k, v))
    return padded.from_chunks(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale))


def _flash(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, scale: float) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # takes seconds to import, and only a GPU needs it

    width = -(-max(q.shape[-1], v.shape[-1]) // FLASH_MULTIPLE) * FLASH_MULTIPLE
    # One width for all three, which zeros do not change: q·k gains none, and the columns v gains are cut off again.
    columns = v.shape[-1]
    q, k, v = (F.pad(t, (0, width - t.shape[-1])) for t in (q, k, v))
    causal = (-1, 0)
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=causal)
    assert isinstance(out, Tensor)  # it returns more only if asked
    return out[..., :columns]
