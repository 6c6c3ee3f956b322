"""The arguments of Kimi Delta Attention as the kernels take them: checked once, in one place."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deltarl.kernels.backend import FLOATS, HEAD_DIMS
from deltarl.kernels.gpu.gate import Gate
from deltarl.kernels.gpu.slots import operand_dtype


@dataclass(frozen=True)
class ChunkInputs:
    """Tokens of packed sequences: q, k, g `[T, H, K]`, v `[T, H, V]`, beta `[T, H]`; each token's values contiguous.

    Attributes:
        norm: L2-normalise q and k.  sigmoid: beta is given as logits.
        all_heads: heads of the tensors that these are a view of (H, unless `heads` made it).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    gate: Gate
    scale: float
    norm: bool
    sigmoid: bool
    all_heads: int = 0

    def __post_init__(self) -> None:
        tokens, heads, key_dim = self.q.shape
        if not self.all_heads:
            object.__setattr__(self, "all_heads", heads)
        value_dim = self.v.shape[-1]
        if key_dim not in HEAD_DIMS or value_dim not in HEAD_DIMS:
            raise ValueError(f"the Triton kernels take head dims {HEAD_DIMS}; got K = {key_dim}, V = {value_dim}")
        wanted = {"k": (tokens, heads, key_dim), "g": (tokens, heads, key_dim), "v": (tokens, heads, value_dim)}
        for name, shape in (wanted | {"beta": (tokens, heads)}).items():
            if self.tensors()[name].shape != shape:
                got = tuple(self.tensors()[name].shape)
                raise ValueError(f"{name} must be {shape} for q {tuple(self.q.shape)}, got {got}")
        for name, x in self.tensors().items():
            if x.dtype not in FLOATS:
                raise ValueError(f"the Triton kernels take fp32, bf16 and fp16; {name} is {x.dtype}")
        if self.gate.a_log is not None and self.gate.dt_bias is not None:
            sizes = (self.gate.a_log.numel(), self.gate.dt_bias.numel())
            if sizes != (heads, heads * key_dim):
                raise ValueError(
                    f"A_log and dt_bias must have H = {heads} and H*K = {heads * key_dim} elements: {sizes}"
                )

    def tensors(self) -> dict[str, Tensor]:
        return {"q": self.q, "k": self.k, "v": self.v, "g": self.g, "beta": self.beta}

    def heads(self, some: slice) -> "ChunkInputs":
        """A view of some heads."""
        q, k, v, g, beta = (x[:, some] for x in self.tensors().values())
        return replace(self, q=q, k=k, v=v, g=g, beta=beta, gate=self.gate.heads(some, self.q.shape[-1]))

    @property
    def operand(self) -> torch.dtype:
        """Dtype of matrix operands and intermediates."""
        return operand_dtype(self.q.dtype)


def rows_contiguous(x: Tensor) -> Tensor:
    """`x` `[T, ...]`, copied only if the elements of one token are not contiguous."""
    return x if x.numel() == 0 or x[0].is_contiguous() else x.contiguous()
