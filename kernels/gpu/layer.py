"""A KDA layer between its projections, on a GPU: short convolution, delta rule, gated norm."""

import torch
from torch import Tensor

from deltarl.kernels.gpu.chunk import chunk_kda, prefill_kda
from deltarl.kernels.gpu.conv import short_conv, store_window
from deltarl.kernels.gpu.decode import decode_step
from deltarl.kernels.gpu.index import CHUNK, ChunkIndex
from deltarl.kernels.gpu.inputs import ChunkInputs, rows_contiguous
from deltarl.kernels.gpu.norm import gated_norm
from deltarl.kernels.gpu.projected import LayerWeights, Projected
from deltarl.kernels.gpu.slots import SlotState


def layer_forward(x: Projected, w: LayerWeights, index: ChunkIndex, position: Tensor) -> Tensor:
    """Packed sequences to the input of the output projection, `[T, H, V]`; differentiable.

    Args:
        position: `[T]` index of each token in its sequence.
    """
    q, k, v = x.heads(short_conv(x.qkv, w.conv, index.cu_seqlens, position))
    out, _ = chunk_kda(
        *(t.unsqueeze(0) for t in (q, k, v, x.forget, x.beta)),
        A_log=w.a_log,
        dt_bias=w.dt_bias,
        lower_bound=w.lower_bound,
        use_qk_l2norm_in_kernel=True,
        use_gate_in_kernel=True,
        use_beta_sigmoid_in_kernel=True,
        index=index,
    )
    return gated_norm(out.squeeze(0), x.out_gate, w.norm, w.eps)


@torch.no_grad()
def layer_prefill(
    x: Projected,
    w: LayerWeights,
    cu_seqlens: Tensor,
    position: Tensor,
    state: SlotState,
    window: Tensor,
    slots: Tensor,
    start: Tensor | None = None,
) -> Tensor:
    """The same numbers for prompts, which also leave what decoding needs in their slots.

    Args:
        position: `[T]` index of each token in its prompt.
        state, window: of S slots, see `SlotState` and `decode_step`.  slots: `[N]` slot of each sequence.
        start: `[N]` tokens of each prompt that its slot holds already, to go on with a prompt that comes in pieces.
    """
    pieces = (None, None) if start is None else (window, slots)
    mixed = short_conv(x.qkv, w.conv, cu_seqlens, position, *pieces)
    store_window(x.qkv, cu_seqlens, window, slots, start)
    q, k, v = (rows_contiguous(t) for t in x.heads(mixed))
    inputs = ChunkInputs(q, k, v, x.forget, x.beta, w.gate, k.shape[-1] ** -0.5, norm=True, sigmoid=True)
    out = prefill_kda(inputs, cu_seqlens, state, slots, None if start is None else start % CHUNK)
    return gated_norm(out, x.out_gate, w.norm, w.eps)


def layer_decode(
    x: Projected, w: LayerWeights, state: SlotState, window: Tensor, slots: Tensor, position: Tensor
) -> Tensor:
    """One token of each of B sequences, `[B, H, V]`: the row that `layer_forward` computes for it, in one launch."""
    return decode_step(
        x.qkv,
        x.forget,
        x.beta,
        x.out_gate,
        conv_weight=w.conv,
        gate=w.gate,
        norm_weight=w.norm,
        eps=w.eps,
        window=window,
        state=state,
        slots=slots,
        position=position,
    )
