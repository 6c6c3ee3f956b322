"""What a KDA layer's kernels work on: the projections of its tokens, and its small weights. Free of Triton."""

from dataclasses import dataclass

from torch import Tensor

from deltarl.kernels.gpu.gate import Gate


@dataclass(frozen=True)
class LayerWeights:
    """conv `[2·H·K + H·V, W]`.  a_log: H elements.  dt_bias: H·K elements.  norm `[V]`.  eps of the norm."""

    conv: Tensor
    a_log: Tensor
    dt_bias: Tensor
    lower_bound: float | None
    norm: Tensor
    eps: float

    @property
    def gate(self) -> Gate:
        return Gate.of(self.a_log.detach(), self.dt_bias.detach(), self.lower_bound, True)


@dataclass(frozen=True)
class Projected:
    """A layer's projections of T tokens (or of one token of each of B sequences).

    qkv: `[T, 2·H·K + H·V]`.  forget: `[T, H, K]` gate inputs.  beta: `[T, H]` logits.  out_gate: `[T, H, V]`.
    """

    qkv: Tensor
    forget: Tensor
    beta: Tensor
    out_gate: Tensor

    def heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k `[T, H, K]` and v `[T, H, V]` of the convolved qkv."""
        heads, key_dim = self.forget.shape[1:]
        inner = heads * key_dim
        q, k, v = mixed.split([inner, inner, mixed.shape[1] - 2 * inner], -1)
        return q.unflatten(-1, (heads, -1)), k.unflatten(-1, (heads, -1)), v.unflatten(-1, (heads, -1))
