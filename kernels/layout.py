"""Where each token of a packed batch sits when its sequence is cut into chunks.

Chunks are stored time-major: the first chunk of every sequence, then every second chunk, and so on, with the longest
sequences first. Step j of the scan over chunks then works on one contiguous slice, and the sequences still running are
always a prefix of those of the step before: no gather, and no work for sequences that have ended.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChunkLayout:
    """Index maps between packed tokens `[T, H, D]` and chunks `[NC, H, C, D]` (NC chunks over all sequences).

    Attributes:
        chunk_size: C, tokens in a chunk; the last chunk of a sequence may hold fewer and is padded with zeros.
        active: number of sequences that have a j-th chunk, for each j; non-increasing, sums to NC.
        order: `[N]` sequence indices, most chunks first (stable): row i of a chunk step is sequence `order[i]`.
        slots: `[T]` flat slot `chunk * C + offset` of every token.
        last_chunk: `[N]` chunk that holds the end of each sequence (0 for an empty sequence).
        tail: `[N]` tokens in that last chunk, 1..C (0 for an empty sequence).
    """

    chunk_size: int
    active: tuple[int, ...]
    order: Tensor
    slots: Tensor
    last_chunk: Tensor
    tail: Tensor
    _row_cache: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(cls, cu_seqlens: Tensor, chunk_size: int) -> "ChunkLayout":
        """Lays out sequences bounded by `cu_seqlens` (`[N+1]`, int, starts at 0, non-decreasing)."""
        device = cu_seqlens.device
        cu = cu_seqlens.to("cpu", torch.int64)
        lengths = cu.diff()
        if len(cu) < 2 or cu[0] != 0 or (lengths < 0).any():
            raise ValueError(f"cu_seqlens must start at 0 and never decrease, got {cu.tolist()}")
        chunks = (lengths + chunk_size - 1) // chunk_size
        order = torch.sort(chunks, descending=True, stable=True).indices
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        active = (chunks[None, :] > torch.arange(int(chunks.max()))[:, None]).sum(1)
        first = torch.cat([torch.zeros(1, dtype=torch.int64), active.cumsum(0)])  # first chunk of step j

        sequence = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        position = torch.arange(int(cu[-1])) - cu[:-1][sequence]
        slots = (first[position // chunk_size] + rank[sequence]) * chunk_size + position % chunk_size
        last_step = (chunks - 1).clamp_min(0)
        return cls(
            chunk_size=chunk_size,
            active=tuple(active.tolist()),
            order=order.to(device),
            slots=slots.to(device),
            last_chunk=(first[last_step] + rank).where(chunks > 0, 0).to(device),
            tail=(lengths - last_step * chunk_size).to(device),
        )

    @property
    def num_chunks(self) -> int:
        return sum(self.active)

    def to_chunks(self, x: Tensor) -> Tensor:
        """`[T, H, D]` to `[NC, H, C, D]`; slots without a token are zero."""
        return _ToChunks.apply(x, self._rows(x.shape[1]), self.num_chunks, self.chunk_size)

    def from_chunks(self, x: Tensor) -> Tensor:
        """`[NC, H, C, D]` back to `[T, H, D]`."""
        return _FromChunks.apply(x, self._rows(x.shape[1]))

    def _rows(self, num_heads: int) -> Tensor:
        """`[T*H]` row of the flattened `[NC*H*C, D]` that holds head h of token t."""
        if num_heads not in self._row_cache:
            self._row_cache[num_heads] = self._compute_rows(num_heads)
        return self._row_cache[num_heads]

    def _compute_rows(self, num_heads: int) -> Tensor:
        chunk, offset = self.slots // self.chunk_size, self.slots % self.chunk_size
        heads = torch.arange(num_heads, device=self.slots.device)
        return ((chunk[:, None] * num_heads + heads) * self.chunk_size + offset[:, None]).flatten()


# The two maps are inverse permutations, so each one's gradient is the other. Written out because autograd would use
# an accumulating scatter for them, which on a CPU is several times slower than the copy it amounts to.


class _ToChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, num_chunks: int, chunk_size: int) -> Tensor:
        ctx.save_for_backward(rows)
        tokens, heads, dim = x.shape
        out = x.new_zeros(num_chunks * heads * chunk_size, dim)
        out.index_copy_(0, rows, x.reshape(tokens * heads, dim))
        return out.view(num_chunks, heads, chunk_size, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        heads, dim = grads[0].shape[1], grads[0].shape[3]
        return grads[0].reshape(-1, dim).index_select(0, rows).view(-1, heads, dim), None, None, None


class _FromChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = x.shape
        return x.reshape(-1, x.shape[-1]).index_select(0, rows).view(-1, x.shape[1], x.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        out = grads[0].new_zeros(ctx.shape)
        out.view(-1, out.shape[-1]).index_copy_(0, rows, grads[0].reshape(rows.shape[0], -1))
        return out, None
