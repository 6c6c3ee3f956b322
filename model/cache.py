"""What decoding remembers: a fixed-size state per KDA layer, a latent per token for each attention layer."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import KimiLinearConfig

from deltarl.kernels.backend import choose_backend
from deltarl.kernels.decode import DecodeState
from deltarl.kernels.gpu.slots import SlotState
from deltarl.model.config import layer_kinds

# Attention reads the cache a whole span at a time, so that its sums do not depend on the longest row of the batch.
SPAN = 32


@dataclass
class KDACache:
    """One KDA layer: `delta`, the recurrence (O(1) per sequence), and `window`, the convolution's last inputs.

    In PyTorch the window is `[B, W-1, 3·H·K]`, oldest first; the Triton kernels keep a ring `[B, W, 3·H·K]`, the input
    of position p at index p % W.
    """

    delta: DecodeState | SlotState
    window: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.delta.tensors(), self.window)

    def __getitem__(self, rows: slice) -> "KDACache":
        return KDACache(self.delta[rows], self.window[rows])


@dataclass
class HybridCache:
    """Decode cache of `batch` sequences. Row i of every tensor belongs to one sequence.

    Attributes:
        layers: one `KDACache`, or latent tensor `[B, max_len, R + rope]`, per model layer.
        length: `[B]` int64 tokens seen.
        max_len: most tokens a row can hold, a multiple of `SPAN`.
    """

    layers: list[KDACache | Tensor]
    length: Tensor
    max_len: int

    @classmethod
    def allocate(
        cls, config: KimiLinearConfig, batch: int, max_len: int, dtype: torch.dtype, device: torch.device
    ) -> "HybridCache":
        max_len = -(-max_len // SPAN) * SPAN
        layers: list[KDACache | Tensor] = []
        heads, dim, width = config.linear_num_heads, config.linear_head_dim, config.linear_conv_kernel_dim
        triton = choose_backend(device, dtype, dim, dim) == "triton"
        for kind in layer_kinds(config):
            if kind == "linear_attention":
                delta: DecodeState | SlotState
                if triton:
                    delta = SlotState.empty(batch, heads, dim, dim, dtype, device)
                else:
                    delta = DecodeState.empty(batch, heads, dim, dim, device)
                window = torch.zeros(batch, width if triton else width - 1, 3 * heads * dim, dtype=dtype, device=device)
                layers.append(KDACache(delta, window))
            else:
                latent = config.kv_lora_rank + config.qk_rope_head_dim
                layers.append(torch.zeros(batch, max_len, latent, dtype=dtype, device=device))
        return cls(layers, torch.zeros(batch, dtype=torch.int64, device=device), max_len)

    def view(self, batch: int) -> "HybridCache":
        """The first `batch` rows, sharing memory."""
        rows = slice(batch)
        return HybridCache([layer[rows] for layer in self.layers], self.length[rows], self.max_len)

    def copy_from(self, other: "HybridCache", source: Tensor, target: Tensor) -> None:
        """Row `target[i]` becomes row `source[i]` of `other` (which may be this cache, if the rows do not overlap).

        This is how the state of one prompt is forked to its samples.
        """
        used = int(other.length[source].max()) if len(source) else 0
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
                mine[target, :used] = theirs[source, :used]
            elif isinstance(mine, KDACache) and isinstance(theirs, KDACache):
                for x, y in zip(mine.tensors(), theirs.tensors(), strict=True):
                    x[target] = y[source]
        self.length[target] = other.length[source]

    def bytes_per_sequence(self, length: int) -> int:
        """Memory one sequence of `length` tokens needs; only the attention layers' share grows with length."""
        total = 0
        for layer in self.layers:
            if isinstance(layer, Tensor):
                total += length * layer[0, 0].nbytes
            else:
                total += sum(x[0].nbytes for x in layer.tensors())
        return total
