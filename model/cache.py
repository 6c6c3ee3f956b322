"""What decoding remembers: a fixed-size state per KDA layer, a latent per token for each attention layer."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import KimiLinearConfig

from deltarl.kernels.backend import choose_backend
from deltarl.kernels.decode import DecodeState
from deltarl.kernels.gpu.slots import SlotState
from deltarl.kernels.precision import core_dtype
from deltarl.model.config import layer_kinds
from deltarl.model.routing import routing_dtype, routing_shape

# Tokens of a page of latents. Attention reads a row page by page, so that its sums do not depend on the longest row.
PAGE_SIZE = 32


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


@dataclass(frozen=True)
class RowState:
    """All that a cache remembers of one sequence of `length` tokens, on its own.

    recurrent: the KDA layers' tensors in the order of the layers, without the row dimension.
    latents: `[length, R + rope]` of each attention layer.
    routed_experts: `[length, layers, k]`, if the cache keeps them.
    """

    length: int
    recurrent: list[Tensor]
    latents: list[Tensor]
    routed_experts: Tensor | None = None

    @property
    def nbytes(self) -> int:
        experts = 0 if self.routed_experts is None else self.routed_experts.nbytes
        return sum(x.nbytes for x in (*self.recurrent, *self.latents)) + experts


@dataclass
class HybridCache:
    """Decode cache of B sequences, a row each.

    Attributes:
        layers: one `KDACache` of B rows, or pool of pages `[P, PAGE_SIZE, R + rope]`, per model layer. The pools hold
            `core_dtype`: the numbers attention computes with.
        block_table: `[B, max_pages]` int32; token t of row b is in page `block_table[b, t // PAGE_SIZE]` of each pool.
        length: `[B]` int64 tokens seen.
        routed_experts: one more pool, `[P, PAGE_SIZE, layers, k]`, of the experts that each token went to in the layers
            that have some; None if nobody asked for it. It lives in the pages, so that it is forked, kept, moved and
            computed again with the tokens' state.
    """

    layers: list[KDACache | Tensor]
    block_table: Tensor
    length: Tensor
    routed_experts: Tensor | None = None

    @classmethod
    def allocate(
        cls,
        config: KimiLinearConfig,
        batch: int,
        max_len: int,
        dtype: torch.dtype,
        device: torch.device,
        num_pages: int | None = None,
        record_routing: bool = False,
    ) -> "HybridCache":
        """
        Args:
            num_pages: size of the pools. If None, every row owns the pages for `max_len` tokens; otherwise whoever
                asked hands pages out, and the table says page 0 until then.
            record_routing: keep `routed_experts`.

        Raises:
            ValueError: `record_routing` for a model without experts.
        """
        spans = -(-max_len // PAGE_SIZE)
        table = torch.zeros(batch, spans, dtype=torch.int32, device=device)
        if num_pages is None:
            num_pages = batch * spans
            table = torch.arange(num_pages, dtype=torch.int32, device=device).view(batch, spans)
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
                stored = dtype if device.type == "cuda" else core_dtype(device, dtype)
                layers.append(torch.zeros(num_pages, PAGE_SIZE, latent, dtype=stored, device=device))
        experts = None
        if record_routing:
            if not all(shape := routing_shape(config)):
                raise ValueError("record_routing is for mixtures of experts, and the model has no experts")
            experts = torch.zeros(num_pages, PAGE_SIZE, *shape, dtype=routing_dtype(config), device=device)
        return cls(layers, table, torch.zeros(batch, dtype=torch.int64, device=device), experts)

    @property
    def max_len(self) -> int:
        """Most tokens a row can hold."""
        return self.block_table.shape[1] * PAGE_SIZE

    def view(self, batch: int) -> "HybridCache":
        """The first `batch` rows, sharing memory."""
        rows = slice(batch)
        layers = [layer[rows] if isinstance(layer, KDACache) else layer for layer in self.layers]
        return HybridCache(layers, self.block_table[rows], self.length[rows], self.routed_experts)

    def copy_rows(self, source: Tensor, target: Tensor) -> None:
        """Row `target[i]` goes on from where row `source[i]` is, but for its pages, which are the caller's business.

        No row may be both a source and a target. This is how the state of one prompt is forked to its samples.
        """
        for x in (*self._recurrent(), self.length):
            x[target] = x[source]

    def clear_rows(self, rows: slice | Tensor) -> None:
        """Rows start over, as sequences without tokens."""
        for x in (*self._recurrent(), self.length):
            x[rows] = 0

    def copy_pages(self, source: Tensor, target: Tensor) -> None:
        """Page `target[i]` becomes a copy of page `source[i]`."""
        for pool in self._paged():
            pool[target] = pool[source]

    def export_row(self, row: int, length: int) -> RowState:
        """A copy of what is known of a row of `length` tokens."""
        latents = [self._read(pool, row, length) for pool in self._pools()]
        return RowState(length, [x[row].clone() for x in self._recurrent()], latents, self.experts_of(row, length))

    def experts_of(self, row: int, length: int) -> Tensor | None:
        """Those of a row's first `length` tokens `[length, layers, k]`, if they are kept."""
        return None if self.routed_experts is None else self._read(self.routed_experts, row, length)

    def note_experts(self, table: Tensor, position: Tensor, experts: Tensor) -> None:
        """Writes down where T tokens went.

        Args:
            table: `[T, n]` pages of each token's row.
            position: `[T]`; below 0 for an idle row, whose pages are all nobody's.
            experts: `[T, layers, k]`.
        """
        assert self.routed_experts is not None
        page = table[torch.arange(len(table), device=table.device), position // PAGE_SIZE].long()
        self.routed_experts[page, position % PAGE_SIZE] = experts.to(self.routed_experts)

    def import_row(self, row: int, state: RowState) -> None:
        """The reverse of `export_row`; the row must have pages enough.

        Raises:
            ValueError: a state of another model, or one without routed experts where they are kept.
        """
        mine = [x[row] for x in self._recurrent()]
        if [x.shape for x in mine] != [x.shape for x in state.recurrent] or len(state.latents) != len(self._pools()):
            raise ValueError("the state is of a model with other layers")
        if self.routed_experts is not None and state.routed_experts is None:
            raise ValueError("the state lacks the routed experts, which this cache keeps")
        for x, y in zip(mine, state.recurrent, strict=True):
            x.copy_(y)
        token = torch.arange(state.length, device=self.length.device)
        page = self.block_table[row, token // PAGE_SIZE].long()
        for pool, latents in zip(self._pools(), state.latents, strict=True):
            pool[page, token % PAGE_SIZE] = latents.to(pool)
        if self.routed_experts is not None and state.routed_experts is not None:
            self.routed_experts[page, token % PAGE_SIZE] = state.routed_experts.to(self.routed_experts)
        self.length[row] = state.length

    def bytes_per_sequence(self, length: int) -> int:
        """Memory one sequence of `length` tokens needs; only the attention layers' share grows with length."""
        return sum(x[0].nbytes for x in self._recurrent()) + -(-length // PAGE_SIZE) * self.bytes_per_page()

    def bytes_per_page(self) -> int:
        """Of all attention layers together, and of the routed experts."""
        return sum(pool[0].nbytes for pool in self._paged())

    def _read(self, pool: Tensor, row: int, length: int) -> Tensor:
        """A copy of what a pool holds of a row's tokens."""
        pages = self.block_table[row, : -(-length // PAGE_SIZE)].long()
        return pool[pages].flatten(0, 1)[:length].clone()

    def _recurrent(self) -> list[Tensor]:
        return [x for layer in self.layers if isinstance(layer, KDACache) for x in layer.tensors()]

    def _pools(self) -> list[Tensor]:
        return [layer for layer in self.layers if isinstance(layer, Tensor)]

    def _paged(self) -> list[Tensor]:
        """All that lives in pages."""
        return self._pools() if self.routed_experts is None else [*self._pools(), self.routed_experts]
