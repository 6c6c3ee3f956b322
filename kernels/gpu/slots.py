"""What the decoder remembers of a sequence: the state at its last chunk boundary and the rows of the chunk since."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deltarl.kernels.gpu.index import CHUNK


def operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the operands of matrix products for inputs of `dtype`: fp32 for fp32, else bf16.

    fp16 inputs get bf16 operands too, because decay factors leave the range of fp16.
    """
    return torch.float32 if dtype == torch.float32 else torch.bfloat16


@dataclass
class SlotState:
    """S slots, a sequence each; updated in place by prefill and decode.

    Rows at and beyond a sequence's offset within its chunk hold leftovers that are never read.

    state: `[S, H, K, V]` fp32.  k: `[S, H, C, K]` normalised keys.  g: `[S, H, C, K]` fp32, log decay of each row.
    lower: `[S, H, C, C]` fp32 rows of Diag(β) Akk.  values: `[S, H, C, V]`, rows of β (v − k⁺ S), before T is applied.
    """

    state: Tensor
    k: Tensor
    g: Tensor
    lower: Tensor
    values: Tensor

    @classmethod
    def empty(
        cls, slots: int, heads: int, key_dim: int, value_dim: int, dtype: torch.dtype, device: torch.device
    ) -> "SlotState":
        """
        Args:
            dtype: of the model's activations.
        """
        operand = operand_dtype(dtype)

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(slots, heads, *shape, dtype=dtype, device=device)

        return cls(
            state=zeros(key_dim, value_dim),
            k=zeros(CHUNK, key_dim, dtype=operand),
            g=zeros(CHUNK, key_dim),
            lower=zeros(CHUNK, CHUNK),
            values=zeros(CHUNK, value_dim, dtype=operand),
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return self.state, self.k, self.g, self.lower, self.values

    def __getitem__(self, rows: slice) -> "SlotState":
        """A view of some slots."""
        return SlotState(*(x[rows] for x in self.tensors()))


class Tail(NamedTuple):
    """The last chunk of each of N sequences, on its way from the prepare kernel to the slots: see `SlotState`."""

    k: Tensor
    g: Tensor
    lower: Tensor

    @classmethod
    def empty(cls, sequences: int, like: SlotState) -> "Tail":
        return cls(*(x.new_empty(sequences, *x.shape[1:]) for x in (like.k, like.g, like.lower)))
