"""The Kimi Delta Attention layer: projections, short convolutions, forget gate, recurrence, gated output norm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import KimiLinearConfig

from deltarl.kernels.backend import choose_backend
from deltarl.kernels.chunk import chunk_kda
from deltarl.kernels.conv import last_inputs, short_conv, short_conv_piece, short_conv_step
from deltarl.kernels.decode import DecodeState, decode_kda
from deltarl.kernels.gate import log_decay
from deltarl.kernels.gpu.projected import LayerWeights, Projected
from deltarl.kernels.gpu.slots import SlotState
from deltarl.kernels.kda import kda
from deltarl.kernels.precision import core_dtype
from deltarl.model.cache import KDACache
from deltarl.model.config import gate_lower_bound, gate_per_head
from deltarl.model.fused import side_by_side
from deltarl.model.packing import Packing


class GatedNorm(nn.Module):
    """Head-wise `weight · x / rms(x) · sigmoid(gate)` in fp32; the weight is shared by the heads."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps)
        return (normed * torch.sigmoid(gate.float())).to(gate.dtype)


class KDALayer(nn.Module):
    """Kimi Delta Attention (arXiv 2510.26692, Eq. 10). Parameter names and shapes are the released checkpoint's.

    With one forget gate a head (`gate_per_head`) it is Gated DeltaNet (arXiv 2412.06464, Eq. 10): `a_proj` in place of
    `f_a_proj` and `f_b_proj`, and the same kernels, which get a head's gate for each of its channels.
    """

    def __init__(self, config: KimiLinearConfig):
        super().__init__()
        self.num_heads, self.head_dim = config.linear_num_heads, config.linear_head_dim
        hidden, inner, width = config.hidden_size, self.num_heads * self.head_dim, config.linear_conv_kernel_dim
        self.lower_bound = gate_lower_bound(config)
        self.q_proj = nn.Linear(hidden, inner, bias=False)
        self.k_proj = nn.Linear(hidden, inner, bias=False)
        self.v_proj = nn.Linear(hidden, inner, bias=False)
        # Held as Conv1d for their parameter's name and shape; applied by kernels.conv.
        self.q_conv1d = nn.Conv1d(inner, inner, width, groups=inner, bias=False)
        self.k_conv1d = nn.Conv1d(inner, inner, width, groups=inner, bias=False)
        self.v_conv1d = nn.Conv1d(inner, inner, width, groups=inner, bias=False)
        self.A_log = nn.Parameter(torch.empty(1, 1, self.num_heads, 1))
        self.gate_per_head = gate_per_head(config)
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads if self.gate_per_head else inner))
        if self.gate_per_head:
            self.a_proj = nn.Linear(hidden, self.num_heads, bias=False)
        else:
            self.f_a_proj = nn.Linear(hidden, self.head_dim, bias=False)
            self.f_b_proj = nn.Linear(self.head_dim, inner, bias=False)
        self.b_proj = nn.Linear(hidden, self.num_heads, bias=False)
        self.g_a_proj = nn.Linear(hidden, self.head_dim, bias=False)
        self.g_b_proj = nn.Linear(self.head_dim, inner, bias=False)
        self.o_norm = GatedNorm(self.head_dim, config.rms_norm_eps)
        self.o_proj = nn.Linear(inner, hidden, bias=False)
        self._joined: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, packing: Packing, cache: KDACache | None = None, rows: Tensor | None = None) -> Tensor:
        """`[T, D]` packed to `[T, D]`; with a cache, sequence i also leaves its state in cache row `rows[i]`.

        Pieces of sequences (`packing.start`) go on from what the rows hold.
        """
        projections, weight = map(torch.cat, self._parts())
        qkv, forget, gate, beta = self._project(x, projections)
        if choose_backend(x.device, x.dtype, self.head_dim, self.head_dim) == "triton":
            projected, weights = Projected(qkv, forget, beta, gate), self._layer_weights(weight)
            return self._triton_forward(projected, weights, packing, cache, rows)
        initial = None
        if packing.start is None or cache is None or rows is None:
            mixed, window = short_conv(qkv, weight, packing.position), None
        else:
            assert isinstance(cache.delta, DecodeState)  # allocated for the same backend
            mixed, window = short_conv_piece(qkv, weight, packing.cu_seqlens, cache.window[rows])
            initial = cache.delta.state[rows]
        q, k, v, g, beta = self._recurrence_inputs(mixed, forget, beta)
        if cache is None or rows is None:
            out, _ = kda(
                *(t.unsqueeze(0) for t in (q, k, v, g, beta)),
                use_qk_l2norm=True,
                cu_seqlens=packing.cu_seqlens,
                layout=packing.chunks,
            )
            return self._output(out.squeeze(0), gate)
        out, _, buffer = chunk_kda(
            q,
            k,
            v,
            g,
            beta,
            self.head_dim**-0.5,
            initial,
            packing.chunks,
            output_buffer=True,
            use_qk_l2norm=True,
            dtype=core_dtype(v.device, v.dtype),
        )
        assert buffer is not None  # asked for
        assert isinstance(cache.delta, DecodeState)  # allocated for the same backend
        cache.delta.load(rows, buffer)
        cache.window[rows] = last_inputs(qkv, packing.cu_seqlens, weight.shape[1]) if window is None else window
        return self._output(out, gate)

    def _triton_forward(
        self, x: Projected, weights: LayerWeights, packing: Packing, cache: KDACache | None, rows: Tensor | None
    ) -> Tensor:
        from deltarl.kernels.gpu.layer import layer_forward, layer_prefill

        if cache is None or rows is None:
            out = layer_forward(x, weights, packing.index, packing.position)
        else:
            assert isinstance(cache.delta, SlotState)  # allocated for the same backend
            out = layer_prefill(
                x, weights, packing.cu_seqlens, packing.position, cache.delta, cache.window, rows, packing.start
            )
        return self.o_proj(out.flatten(-2))

    def decode(self, x: Tensor, cache: KDACache, slots: Tensor, offset: Tensor, position: Tensor) -> Tensor:
        """One token for each row of the cache, `[B, D]`, under the weights that `join_weights` last saw.

        Args:
            slots: `[B]` 0..B-1, or below 0 for an idle row, which the Triton kernels leave alone; in PyTorch there must
                be none.
            offset: `[B]` that of the token within its chunk.  position: `[B]` that in its sequence.
        """
        projections, weight = self._joined or self.join_weights()
        qkv, forget, gate, beta = self._project(x, projections)
        if isinstance(cache.delta, SlotState):
            from deltarl.kernels.gpu.layer import layer_decode

            projected = Projected(qkv, forget, beta, gate)
            out = layer_decode(projected, self._layer_weights(weight), cache.delta, cache.window, slots, position)
            return self.o_proj(out.flatten(-2))
        mixed = short_conv_step(qkv, weight, cache.window)
        q, k, v, g, beta = self._recurrence_inputs(mixed, forget, beta)
        out = decode_kda(q, k, v, g, beta, self.head_dim**-0.5, cache.delta, offset, use_qk_l2norm=True)
        return self._output(out, gate)

    def _project(self, x: Tensor, projections: Tensor) -> tuple[Tensor, ...]:
        """`x` to q, k and v side by side, forget gate and output gate `[T, H, K]` each, and beta's logits `[T, H]`.

        One product for all six matrices: fewer calls, and a matrix as narrow as `b_proj` alone would round
        differently for different batch sizes.
        """
        inner = self.num_heads * self.head_dim
        mixed = F.linear(x, projections)
        narrow = self.num_heads if self.gate_per_head else self.head_dim
        qkv, forget, gate, beta = mixed.split([3 * inner, narrow, self.head_dim, self.num_heads], -1)
        heads = (self.num_heads, self.head_dim)
        if self.gate_per_head:
            forget = forget.unsqueeze(-1).expand(*forget.shape, self.head_dim).contiguous()
        else:
            forget = self.f_b_proj(forget).unflatten(-1, heads)
        return qkv, forget, self.g_b_proj(gate).unflatten(-1, heads), beta

    def join_weights(self) -> tuple[Tensor, Tensor]:
        """Joins the projections and the convolutions for `decode`; to be called again when they have changed."""
        old = self._joined or (None, None)
        projections, convolutions = (side_by_side(parts, room) for parts, room in zip(self._parts(), old, strict=True))
        self._joined = projections, convolutions
        return self._joined

    def _parts(self) -> tuple[list[Tensor], list[Tensor]]:
        """The weights of the projections of the layer's input and of the convolutions `[H·K, W]`."""
        forget = self.a_proj if self.gate_per_head else self.f_a_proj
        projections = (self.q_proj, self.k_proj, self.v_proj, forget, self.g_a_proj, self.b_proj)
        convolutions = (self.q_conv1d, self.k_conv1d, self.v_conv1d)
        return [m.weight for m in projections], [m.weight.squeeze(1) for m in convolutions]

    def _layer_weights(self, convolution: Tensor) -> LayerWeights:
        norm, eps = self.o_norm.weight, self.o_norm.eps
        return LayerWeights(convolution, self.A_log, self._channel_bias(), self.lower_bound, norm, eps)

    def _channel_bias(self) -> Tensor:
        """The gate's bias of each key channel, `[H·K]`."""
        return self.dt_bias.repeat_interleave(self.head_dim) if self.gate_per_head else self.dt_bias

    def _recurrence_inputs(
        self, mixed: Tensor, forget: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Convolved projections to q, k, v, log decay and beta, heads split; beta in `core_dtype`."""
        q, k, v = mixed.unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        g = log_decay(forget, self.A_log, self._channel_bias(), self.lower_bound)
        return q, k, v, g, beta.to(core_dtype(mixed.device, mixed.dtype)).sigmoid()

    def _output(self, out: Tensor, gate: Tensor) -> Tensor:
        return self.o_proj(self.o_norm(out, gate).flatten(-2))
