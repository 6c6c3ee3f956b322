"""Kimi Delta Attention a chunk at a time on a GPU, with its gradient, and as the prefill of a decoder."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltarl.kernels.gpu.backward import backward
from deltarl.kernels.gpu.index import ChunkIndex
from deltarl.kernels.gpu.inputs import ChunkInputs, Gate, rows_contiguous
from deltarl.kernels.gpu.prepare import prepare
from deltarl.kernels.gpu.scan import scan
from deltarl.kernels.gpu.slots import SlotState


class _ChunkKDA(torch.autograd.Function):
    """Saves the inputs and the state every `GROUP` chunks; the backward pass recomputes what lies between."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        a_log: Tensor | None,
        dt_bias: Tensor | None,
        initial: Tensor | None,
        index: ChunkIndex,
        options: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        in_kernel, lower_bound, scale, norm, sigmoid, output_final, train = options
        x = ChunkInputs(q, k, v, g, beta, Gate.of(a_log, dt_bias, lower_bound, in_kernel), scale, norm, sigmoid)
        heads, key_dim, value_dim = q.shape[1], q.shape[2], v.shape[2]
        state_shape = (index.num_sequences, heads, key_dim, value_dim)
        if initial is not None and initial.shape != state_shape:
            raise ValueError(f"initial_state must be [N,H,K,V] = {state_shape}, got {tuple(initial.shape)}")
        final = q.new_empty(state_shape, dtype=torch.float32) if output_final else None
        checkpoints = None
        if train:
            checkpoints = q.new_empty(len(index.group_sequence), heads, value_dim, key_dim, dtype=x.operand)
        out = scan(x, index, prepare(x, index), initial, final, checkpoints)
        ctx.save_for_backward(q, k, v, g, beta, a_log, dt_bias, checkpoints)
        ctx.index, ctx.options, ctx.has_initial = index, options, initial is not None
        return out, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, g, beta, a_log, dt_bias, checkpoints = ctx.saved_tensors
        in_kernel, lower_bound, scale, norm, sigmoid, *_ = ctx.options
        d_out, d_final = grads
        index: ChunkIndex = ctx.index
        x = ChunkInputs(q, k, v, g, beta, Gate.of(a_log, dt_bias, lower_bound, in_kernel), scale, norm, sigmoid)
        d_out = torch.zeros_like(v, memory_format=torch.contiguous_format) if d_out is None else d_out.contiguous()
        d_final = None if d_final is None else d_final.contiguous()
        d_initial = None
        if ctx.has_initial:
            d_initial = q.new_empty(index.num_sequences, *q.shape[1:], v.shape[-1], dtype=torch.float32)
        d = backward(x, index, checkpoints, d_out, d_final, d_initial)
        d_a_log = d_dt_bias = None
        if in_kernel:
            d_a_log, d_dt_bias = (
                d.a_log().view_as(a_log).to(a_log.dtype),
                d.dt_bias().view_as(dt_bias).to(dt_bias.dtype),
            )
        return d.q, d.k, d.v, d.g, d.beta, d_a_log, d_dt_bias, d_initial, None, None


def chunk_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    lower_bound: float | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    index: ChunkIndex | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Chunkwise KDA, differentiable in every tensor; argument names and conventions of fla's `chunk_kda`.

    Args:
        q, k: `[B, T, H, K]`.  v: `[B, T, H, V]`.  beta: `[B, T, H]`, logits with `use_beta_sigmoid_in_kernel`.
        g: `[B, T, H, K]` log decay (natural logarithm), at most 0; or the gate's pre-activation with
            `use_gate_in_kernel`, which takes A_log `[H]`, dt_bias `[H*K]` and, for the bounded gate, `lower_bound`.
        initial_state: `[N, H, K, V]` fp32, zeros if None.
        cu_seqlens: `[N+1]` bounds of sequences packed along T; B must be 1.
        index: `ChunkIndex` of the same sequences, to be shared by the layers of a model.

    Returns:
        Output `[B, T, H, V]` in v's dtype, and the final state `[N, H, K, V]` fp32 or None.

    Raises:
        ValueError: shapes that do not fit together, head dims or dtypes the kernels do not take, a gate without its
            parameters.
    """
    batch, length, heads, key_dim = q.shape
    if index is None:
        if cu_seqlens is None:
            index = ChunkIndex.of_batch(batch, length, q.device)
        elif batch != 1:
            raise ValueError(f"packed sequences (cu_seqlens) need B = 1, got B = {batch}")
        else:
            index = ChunkIndex.build(cu_seqlens, batch * length)
    scale = key_dim**-0.5 if scale is None else scale
    options = (
        use_gate_in_kernel, lower_bound, scale, use_qk_l2norm_in_kernel, use_beta_sigmoid_in_kernel,
        output_final_state, torch.is_grad_enabled(),
    )  # fmt: skip
    tokens = [rows_contiguous(x.flatten(0, 1)) for x in (q, k, v, g, beta)]
    if initial_state is not None:
        initial_state = initial_state.float().contiguous()
    out, final = _ChunkKDA.apply(*tokens, A_log, dt_bias, initial_state, index, options)
    return out.view(batch, length, heads, v.shape[-1]), final


@torch.no_grad()
def prefill_kda(x: ChunkInputs, cu_seqlens: Tensor, state: SlotState, slots: Tensor, offset: Tensor | None) -> Tensor:
    """Runs packed prompts, or the next piece of each, into decode slots.

    Args:
        slots: `[N]` slot of each sequence, all different.
        offset: `[N]` tokens that the slot already holds since its last chunk boundary, for the next piece of a prompt
            (position of the piece modulo the chunk size); None starts all sequences anew.

    Returns:
        Output `[T, H, V]`: the numbers a single call over the whole prompt gives, to the bit.
    """
    if state.state.shape[1:] != (*x.q.shape[1:], x.v.shape[-1]) or state.k.dtype != x.operand:
        kept = f"{tuple(state.state.shape[1:])} in {state.k.dtype}"
        raise ValueError(f"the slots hold [H,K,V] = {kept}, q is {tuple(x.q.shape)}, v {tuple(x.v.shape)}")
    index = ChunkIndex.build(cu_seqlens, len(x.q), offset)
    p = prepare(x, index, slots=slots, state=state)
    initial = None if offset is None else state.state
    return scan(x, index, p, initial, final=state.state, slots=slots, state=state)
