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
        lengths: tokens of each of the N sequences.
        active: number of sequences that have a j-th chunk, for each j; non-increasing, sums to NC.
        order: `[N]` sequence indices, most chunks first (stable): row i of a chunk step is sequence `order[i]`.
        rank: `[N]` its inverse: sequence i is row `rank[i]`.
        slots: `[T]` flat slot `chunk * C + offset` of every token.
        last_chunk: `[N]` chunk that holds the end of each sequence (0 for an empty sequence).
        tail: `[N]` tokens in that last chunk, 1..C (0 for an empty sequence).
    """

    chunk_size: int
    lengths: tuple[int, ...]
    active: tuple[int, ...]
    order: Tensor
    rank: Tensor
    slots: Tensor
    last_chunk: Tensor
    tail: Tensor
    _slots_of: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)
    _tokens_of: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)
    _groups: dict[tuple[int, int], tuple["ChunkLayout", ...]] = field(default_factory=dict, repr=False, compare=False)

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
            lengths=tuple(lengths.tolist()),
            active=tuple(active.tolist()),
            order=order.to(device),
            rank=rank.to(device),
            slots=slots.to(device),
            last_chunk=(first[last_step] + rank).where(chunks > 0, 0).to(device),
            tail=(lengths - last_step * chunk_size).to(device),
        )

    @property
    def num_chunks(self) -> int:
        return sum(self.active)

    def groups(self, least: int, enough: int) -> tuple["ChunkLayout", ...]:
        """Layouts of parts of the sequences, in order: each has at least `least` sequences and `enough` tokens."""
        if (least, enough) not in self._groups:
            parts: list[list[int]] = []
            part: list[int] = []
            for length in self.lengths:
                part.append(length)
                if len(part) >= least and sum(part) >= enough:
                    parts.append(part)
                    part = []
            parts = [*parts[:-1], [*parts[-1], *part]] if parts else [part]
            bounds = [torch.tensor([0, *part], device=self.slots.device).cumsum(0) for part in parts]
            self._groups[least, enough] = (
                (self,) if len(parts) == 1 else tuple(ChunkLayout.build(b, self.chunk_size) for b in bounds)
            )
        return self._groups[least, enough]

    def to_chunks(self, x: Tensor) -> Tensor:
        """`[T, H, D]` to `[NC, H, C, D]`; slots without a token are zero."""
        return _ToChunks.apply(x, self)

    def from_chunks(self, x: Tensor) -> Tensor:
        """`[NC, H, C, D]` back to `[T, H, D]`."""
        return _FromChunks.apply(x, self)

    def gather(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`to_chunks` without autograd: `[T, H, D]` to `[NC*H, C, D]` in `dtype`, x's if None."""
        rows, empty = self._token_rows(x.shape[1])
        chunks = x.reshape(-1, x.shape[2]).index_select(0, rows)
        if len(empty):
            chunks.index_fill_(0, empty, 0.0)
        return chunks.view(-1, self.chunk_size, x.shape[2]).to(dtype or x.dtype)

    def scatter(self, x: Tensor, heads: int, dtype: torch.dtype | None = None) -> Tensor:
        """`from_chunks` without autograd: `[NC*H, C, D]` to `[T, H, D]` in `dtype`, x's if None."""
        chunks = x.to(dtype or x.dtype).reshape(-1, x.shape[2])
        return chunks.index_select(0, self._slot_rows(heads)).view(-1, heads, x.shape[2])

    def _slot_rows(self, heads: int) -> Tensor:
        """`[T*H]` row of the flattened `[NC*H*C, D]` that holds head h of token t."""
        if heads not in self._slots_of:
            chunk, offset = self.slots // self.chunk_size, self.slots % self.chunk_size
            head = torch.arange(heads, device=self.slots.device)
            rows = (chunk[:, None] * heads + head) * self.chunk_size + offset[:, None]
            self._slots_of[heads] = rows.flatten()
        return self._slots_of[heads]

    def _token_rows(self, heads: int) -> tuple[Tensor, Tensor]:
        """`[NC*H*C]` row of the flattened `[T*H, D]` that a slot holds, and the slots that hold none."""
        if heads not in self._tokens_of:
            slots = self._slot_rows(heads)
            rows = slots.new_full((self.num_chunks * heads * self.chunk_size,), -1)
            rows[slots] = torch.arange(len(slots), device=slots.device)
            self._tokens_of[heads] = rows.clamp_min(0), (rows < 0).nonzero().squeeze(1)
        return self._tokens_of[heads]


# The two maps are inverse permutations, so each one's gradient is the other. Written out because autograd would use
# an accumulating scatter for them, which on a CPU is several times slower than the copy it amounts to. Both are
# gathers, which on a CPU are several times faster than writing to scattered rows.


class _ToChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: ChunkLayout) -> Tensor:
        ctx.layout = layout
        return layout.gather(x).view(layout.num_chunks, x.shape[1], layout.chunk_size, x.shape[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.layout.scatter(grads[0].flatten(0, 1), grads[0].shape[1]), None


class _FromChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: ChunkLayout) -> Tensor:
        ctx.layout = layout
        return layout.scatter(x.flatten(0, 1), x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layout = ctx.layout
        return layout.gather(grads[0]).view(layout.num_chunks, grads[0].shape[1], layout.chunk_size, -1), None
