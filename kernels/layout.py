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
    _cache: dict[tuple[int, ...], tuple[Tensor, ...]] = field(default_factory=dict, repr=False, compare=False)
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
        """Layouts of runs of the sequences: each ends as soon as it has `least` sequences and `enough` tokens.

        What is left over belongs to the last.
        """
        key = (least, enough)
        if key not in self._groups:
            runs: list[list[int]] = [[]]
            for length in self.lengths:
                if len(runs[-1]) >= least and sum(runs[-1]) >= enough:
                    runs.append([])
                runs[-1].append(length)
            rest = runs.pop() if len(runs[-1]) < least or sum(runs[-1]) < enough else []
            if runs:
                runs[-1] += rest
            else:
                runs.append(rest)
            device = self.slots.device
            self._groups[key] = tuple(
                ChunkLayout.build(torch.tensor([0, *run], device=device).cumsum(0), self.chunk_size) for run in runs
            )
        return self._groups[key]

    def to_chunks(self, x: Tensor) -> Tensor:
        """`[T, H, D]` to `[NC, H, C, D]`; slots without a token are zero."""
        return _ToChunks.apply(x, self)

    def from_chunks(self, x: Tensor) -> Tensor:
        """`[NC, H, C, D]` back to `[T, H, D]`."""
        return _FromChunks.apply(x, self)

    def gather(self, x: Tensor) -> Tensor:
        """`to_chunks` without autograd, `[T, H, D]` to `[NC*H, C, D]`."""
        tokens, heads, dim = x.shape
        rows, empty = self._token_rows(heads)
        chunks = x.reshape(tokens * heads, dim).index_select(0, rows)
        if len(empty):
            chunks.index_fill_(0, empty, 0.0)
        return chunks.view(-1, self.chunk_size, dim)

    def scatter(self, x: Tensor, heads: int, first: int = 0) -> Tensor:
        """`from_chunks` without autograd: rows `first` to `first + C` of `[NC*H, R, D]` to `[T, H, D]`."""
        rows = self._chunk_rows(heads, x.shape[1], first)
        return x.reshape(-1, x.shape[2]).index_select(0, rows).view(-1, heads, x.shape[2])

    def _token_rows(self, heads: int) -> tuple[Tensor, ...]:
        """`[NC*H*C]` row of the flattened `[T*H, D]` that a slot holds, and the slots that hold none."""
        if (heads,) not in self._cache:
            slots = self._chunk_rows(heads, self.chunk_size, 0)
            rows = slots.new_full((self.num_chunks * heads * self.chunk_size,), -1)
            rows[slots] = torch.arange(len(slots), device=slots.device)
            self._cache[heads,] = rows.clamp_min(0), (rows < 0).nonzero().squeeze(1)
        return self._cache[heads,]

    def _chunk_rows(self, heads: int, height: int, first: int) -> Tensor:
        """`[T*H]` row of the flattened `[NC*H*R, D]`, R = `height`, that holds head h of token t."""
        key = (heads, height, first)
        if key not in self._cache:
            chunk, offset = self.slots // self.chunk_size, self.slots % self.chunk_size + first
            head = torch.arange(heads, device=self.slots.device)
            self._cache[key] = (((chunk[:, None] * heads + head) * height + offset[:, None]).flatten(),)
        return self._cache[key][0]


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
