"""Where the chunks of packed sequences are, as index tensors that kernels read: made once per batch, without a sync."""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 16  # tokens that are computed together; also what the decoder buffers
GROUP = 4  # chunks between two checkpoints of the state, from which the backward pass starts


@dataclass(frozen=True)
class ChunkIndex:
    """Chunks of N sequences packed along T. Sizes are upper bounds known on the host; unused entries say sequence N.

    Attributes:
        cu_seqlens: `[N+1]` int64 bounds.
        offset: `[N]` int64 tokens of its chunk that a sequence already has in the decoder's buffer (0..15), or None
            where every sequence starts at a chunk boundary. Such a sequence's first chunk starts `offset` tokens before
            its first token in this batch.
        storage: `[N]` int64 row of the intermediates that holds row 0 of a sequence's first chunk. They have a row per
            token, and, with offsets, room for the buffered rows before it: `T + 16 N`.
        first_chunk, first_group: `[N+1]` int32, number of chunks (groups) before each sequence.
        chunk_sequence, group_sequence: `[≤ T//16 + N]`, `[≤ T//64 + N]` int32 sequence of each chunk (group).
    """

    cu_seqlens: Tensor
    offset: Tensor | None
    storage: Tensor
    first_chunk: Tensor
    first_group: Tensor
    chunk_sequence: Tensor
    group_sequence: Tensor

    @classmethod
    def build(cls, cu_seqlens: Tensor, num_tokens: int, offset: Tensor | None = None) -> "ChunkIndex":
        """
        Args:
            cu_seqlens: `[N+1]` bounds, starts at 0, never decreases, ends at `num_tokens` (not checked: that would
                wait for the device).
        """
        cu_seqlens = cu_seqlens.long()
        sequences, starts = len(cu_seqlens) - 1, cu_seqlens[:-1]
        lengths = cu_seqlens.diff()
        chunks = (lengths if offset is None else lengths + offset).add(CHUNK - 1).div(CHUNK, rounding_mode="floor")
        if offset is not None:
            chunks = chunks.where(lengths > 0, 0)  # nothing new, nothing to do
        groups = chunks.add(GROUP - 1).div(GROUP, rounding_mode="floor")
        first = torch.zeros(2, sequences + 1, dtype=torch.int32, device=cu_seqlens.device)
        first[:, 1:] = torch.stack([chunks, groups]).cumsum(1)
        spare = sequences if offset is None else 2 * sequences
        return cls(
            cu_seqlens=cu_seqlens,
            offset=offset,
            storage=starts if offset is None else starts + CHUNK * torch.arange(sequences, device=starts.device),
            first_chunk=first[0],
            first_group=first[1],
            chunk_sequence=_owner(first[0], num_tokens // CHUNK + spare),
            group_sequence=_owner(first[1], num_tokens // (CHUNK * GROUP) + sequences),
        )

    @classmethod
    def of_batch(cls, batch: int, length: int, device: torch.device) -> "ChunkIndex":
        """For `batch` sequences of `length` tokens each."""
        return cls.build(torch.arange(batch + 1, device=device) * length, batch * length)

    def storage_rows(self, num_tokens: int) -> int:
        """Rows of the intermediates of `num_tokens` tokens."""
        return num_tokens if self.offset is None else num_tokens + CHUNK * self.num_sequences

    @property
    def num_sequences(self) -> int:
        return len(self.cu_seqlens) - 1


def _owner(first: Tensor, size: int) -> Tensor:
    """`[size]` int32: the sequence whose span `first[n]..first[n+1]-1` holds each index, N where none does."""
    index = torch.arange(size, dtype=torch.int32, device=first.device)
    return torch.searchsorted(first[1:].contiguous(), index, right=True, out_int32=True)
