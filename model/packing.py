"""Several sequences end to end in one tensor, and the index maps the layers share."""

from functools import cached_property

import torch
from torch import Tensor

from deltarl.kernels.chunk import CHUNK_SIZE
from deltarl.kernels.gpu.index import ChunkIndex
from deltarl.kernels.layout import ChunkLayout

# Attention kernels round differently for lengths that are not a multiple of their vector width. With padded lengths
# rounded up, a sequence's numbers do not depend on the longest one it is batched with.
PAD_MULTIPLE = 16


class Packing:
    """Bounds of N sequences packed along T, built once per forward pass.

    No dataclass: FSDP takes those apart that a module is called with, and hands on copies without the cached parts.

    Attributes:
        cu_seqlens: `[N+1]` bounds.
        position: `[T]` index of each token in its own sequence.
        start: `[N]` tokens of each sequence that came before, where these are pieces of sequences; else None.
        chunks: layout of the KDA layers.
        padded: one chunk per sequence, as long as the longest, rounded up: the layout of the attention layers.
            Padding on the right is never seen by a causal mask.
    """

    def __init__(
        self,
        cu_seqlens: Tensor,
        position: Tensor,
        chunks: ChunkLayout,
        padded: ChunkLayout,
        start: Tensor | None = None,
    ):
        self.cu_seqlens, self.position, self.start = cu_seqlens, position, start
        self.chunks, self.padded = chunks, padded

    @classmethod
    def build(cls, cu_seqlens: Tensor, start: Tensor | None = None) -> "Packing":
        lengths = cu_seqlens.diff()
        first = torch.repeat_interleave(cu_seqlens[:-1] if start is None else cu_seqlens[:-1] - start, lengths)
        return cls(
            cu_seqlens=cu_seqlens,
            position=torch.arange(len(first), device=cu_seqlens.device) - first,
            start=start,
            chunks=ChunkLayout.build(cu_seqlens, CHUNK_SIZE),
            padded=ChunkLayout.build(cu_seqlens, -(-max(1, int(lengths.max())) // PAD_MULTIPLE) * PAD_MULTIPLE),
        )

    @cached_property
    def index(self) -> ChunkIndex:
        """The chunks of the KDA layers as the Triton kernels find them."""
        return ChunkIndex.build(self.cu_seqlens, len(self.position))

    @classmethod
    def from_lengths(
        cls, lengths: list[int], device: torch.device | None = None, start: list[int] | None = None
    ) -> "Packing":
        before = None if start is None else torch.tensor(start, device=device)
        return cls.build(torch.tensor([0, *lengths], device=device).cumsum(0), before)
