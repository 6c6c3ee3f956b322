"""Causal attention over packed sequences, for training and prefill."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils import deterministic

from deltarl.kernels.layout import ChunkLayout

FLASH_DTYPES = (torch.bfloat16, torch.float16)
FLASH_MAX_WIDTH, FLASH_MULTIPLE = 256, 8  # of the head dims that PyTorch's flash attention takes


def packed_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, padded: ChunkLayout, scale: float) -> Tensor:
    """`softmax(scale q kᵀ) v` within each sequence, every token seeing itself and what is before it.

    In bf16 and fp16 on a GPU by PyTorch's flash attention, which reads the sequences where they are; otherwise by its
    `scaled_dot_product_attention`, on sequences padded to the longest.

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


def piece_attention(q: Tensor, k: Tensor, v: Tensor, q_bounds: Tensor, k_bounds: Tensor, scale: float) -> Tensor:
    """The same where q are only the last tokens of each sequence: the next pieces of prompts.

    Args:
        q: `[Tq, H, Dqk]`.  k: `[T, H, Dqk]`.  v: `[T, H, Dv]`.
        q_bounds, k_bounds: `[N+1]` int, of the pieces and of the sequences up to the ends of the pieces.

    Returns:
        `[Tq, H, Dv]` in the dtype of v.
    """
    q_sizes, k_sizes = q_bounds.diff().tolist(), k_bounds.diff().tolist()
    if q.is_cuda and q.dtype in FLASH_DTYPES and max(q.shape[-1], v.shape[-1]) <= FLASH_MAX_WIDTH:
        return _flash(q, k, v, q_bounds.int(), max(q_sizes), scale, k_bounds.int(), max(k_sizes))
    out = []
    for new, key, value in zip(q.split(q_sizes), k.split(k_sizes), v.split(k_sizes), strict=True):
        seen = torch.ones(len(new), len(key), dtype=torch.bool, device=q.device).tril(len(key) - len(new))
        new, key, value = (x.transpose(0, 1) for x in (new, key, value))
        out.append(F.scaled_dot_product_attention(new, key, value, attn_mask=seen, scale=scale).transpose(0, 1))
    return torch.cat(out)


def _flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: Tensor,
    longest: int,
    scale: float,
    k_bounds: Tensor | None = None,
    longest_k: int | None = None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # takes seconds to import, and only a GPU needs it

    width = -(-max(q.shape[-1], v.shape[-1]) // FLASH_MULTIPLE) * FLASH_MULTIPLE
    # One width for all three, which zeros do not change: q·k gains none, and the columns v gains are cut off again.
    columns = v.shape[-1]
    q, k, v = (F.pad(t, (0, width - t.shape[-1])) for t in (q, k, v))
    causal = (-1, 0)
    k_bounds, longest_k = bounds if k_bounds is None else k_bounds, longest_k or longest
    out = varlen_attn(q, k, v, bounds, k_bounds, longest, longest_k, scale=scale, window_size=causal)
    assert isinstance(out, Tensor)  # it returns more only if asked
    if out.grad_fn is not None:
        _backward_in_order(out.grad_fn)
    return out[..., :columns]


def _backward_in_order(node: Node) -> None:
    """Has flash attention's backward add up the gradient of q in the same order each time.

    It looks at torch's deterministic mode as it is launched, and takes a mode that only warns for none. That is a
    switch of the whole process, which makes other operations slower or refuse to run: it is on for this one alone.
    """
    before: list[tuple[bool, bool, bool]] = []
    fill: Any = deterministic  # typed without the property that it has

    def begin(_: object) -> None:
        mode = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        before.append((*mode, fill.fill_uninitialized_memory))
        torch.use_deterministic_algorithms(True)
        fill.fill_uninitialized_memory = False  # all of it is written to

    def end(*_: object) -> None:
        enabled, warn_only, fill.fill_uninitialized_memory = before.pop()
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)

    node.register_prehook(begin)
    node.register_hook(end)
