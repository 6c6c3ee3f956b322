"""The backward pass of the chunk form: its kernels in order, for some heads at a time."""

import torch
from torch import Tensor

from deltarl.kernels.gpu.gradients import Gradients, gradients
from deltarl.kernels.gpu.index import ChunkIndex
from deltarl.kernels.gpu.inputs import ChunkInputs
from deltarl.kernels.gpu.prepare import prepare
from deltarl.kernels.gpu.reverse_scan import reverse_scan
from deltarl.kernels.gpu.walk import walk

# Heads go together until their keys are fewer elements than this (about 1 GB of intermediates with K = V = 128), or
# their states fewer than this, which are what keeps a GPU busy.
SLICE_ELEMENTS = 2**25
SLICE_STATES = 64


def heads_together(heads: int, key_dim: int, num_tokens: int, num_sequences: int) -> int:
    """Heads whose intermediates are held at one time, a divisor of `heads`: memory is reused from slice to slice."""
    while (
        heads % 2 == 0 and num_tokens * key_dim * heads > SLICE_ELEMENTS and num_sequences * heads // 2 >= SLICE_STATES
    ):
        heads //= 2
    return heads


def backward(
    x: ChunkInputs,
    index: ChunkIndex,
    checkpoints: Tensor,
    d_out: Tensor,
    d_final: Tensor | None,
    d_initial: Tensor | None,
) -> Gradients:
    """Gradients of all inputs.

    Args:
        checkpoints: of `scan`, `[NG, H, V, K]`.  d_out: gradient of the output `[T, H, V]`, contiguous.
        d_final: gradient of the final states `[N, H, K, V]` fp32, contiguous, or None for zeros.
        d_initial: receives that of the initial states.
    """
    tokens, heads, key_dim = x.q.shape
    total = Gradients.empty(x, index)
    step = heads_together(heads, key_dim, tokens, index.num_sequences)
    for start in range(0, heads, step):
        some = slice(start, start + step)
        last, first = (None if t is None else t[:, some] for t in (d_final, d_initial))
        _some_heads(x.heads(some), index, checkpoints[:, some], d_out[:, some], last, first, total.heads(some))
    return total


def _some_heads(
    x: ChunkInputs,
    index: ChunkIndex,
    before: Tensor,
    d_out: Tensor,
    d_final: Tensor | None,
    d_initial: Tensor | None,
    into: Gradients,
) -> None:
    """A function of its own, so that the intermediates are gone before those of the next heads are made."""
    p = prepare(x, index, trace=True)
    after = torch.empty_like(before, memory_format=torch.contiguous_format)
    d_rows = reverse_scan(x, index, p, d_out, d_final, d_initial, after)
    gradients(x, index, p, d_out, d_rows, walk(x, index, p, d_out, d_rows, before, after), into)
