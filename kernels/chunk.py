"""KDA a chunk at a time: the form that trains and prefills.

Within a chunk with cumulative log decay G (arXiv 2510.26692, Eqs. 2-9, in the notation of the flash-linear-attention
kernels), S being the state at the start of the chunk:

    Akk[i,j] = Σ_d k_i k_j exp(G_i − G_j)  (i > j)          Aqk[i,j] = scale Σ_d q_i k_j exp(G_i − G_j)  (i ≥ j)
    (I + Diag(β) Akk) v' = β (v − (e^G k) S)                the delta rule of the chunk, one triangular solve
    o = scale (e^G q) S + Aqk v'                            S⁺ = Diag(e^{G_C}) S + (e^{G_C−G} k)ᵀ v'

`scan.py` has the arithmetic, `scan_backward.py` its gradients. `decode.py` computes one row of exactly this, so that
sampler and learner agree to rounding.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltarl.kernels.layout import ChunkLayout
from deltarl.kernels.scan import Chunks, Step, scan
from deltarl.kernels.scan_backward import scan_gradients

CHUNK_SIZE = 16

# A batch is worked through in groups of sequences: what one group needs stays in the processor's cache, and its memory
# is used again by the next. A group has at least so many channels (of all heads and tokens), and in each of its steps.
GROUP_SIZE = 1 << 18
GROUP_WIDTH = 1 << 11


@dataclass
class ChunkBuffer:
    """The unfinished last chunk of each sequence: what a decoder needs to go on from any length.

    state: `[N, H, K, V]` at the last chunk boundary.  k, cumulative: `[N, H, C, K]`.  v_new: `[N, H, C, V]`.
    length: `[N]` rows in use, 0..C-1. Rows beyond are zero in k and v_new, and repeat the last cumulative decay.
    """

    state: Tensor
    k: Tensor
    cumulative: Tensor
    v_new: Tensor
    length: Tensor


def chunk_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float,
    initial_state: Tensor | None,
    layout: ChunkLayout,
    output_buffer: bool = False,
    *,
    use_qk_l2norm: bool = False,
    output_final_state: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None, ChunkBuffer | None]:
    """Chunkwise KDA over packed sequences; same function as `recurrent_kda`, same argument shapes.

    Args:
        initial_state: `[N, H, K, V]`, the state each sequence starts from; zeros if None.
        layout: made from the sequence bounds with `ChunkLayout.build`.
        output_buffer: also return the state at the last chunk boundary with the rows since then. No gradient then.
        use_qk_l2norm: normalise q and k first.
        dtype: to compute and return states in; v's if None.

    Returns:
        Output `[T, H, V]` in v's dtype, final state `[N, H, K, V]` or None, and the buffer or None.
    """
    dtype, tensors = dtype or v.dtype, (q, k, v, g, beta)
    if output_buffer:
        with torch.no_grad():
            return _prefill(tensors, scale, initial_state, layout, dtype, use_qk_l2norm)
    channels = q.shape[1] * q.shape[2]
    groups = layout.groups(-(-GROUP_WIDTH // channels), -(-GROUP_SIZE // channels))
    # Split once: the gradient of n slices is n sums over the whole tensor, that of one split a concatenation.
    pieces = zip(*(x.split([sum(group.lengths) for group in groups]) for x in tensors), strict=True)
    sequences = [len(group.lengths) for group in groups]
    states = [None] * len(groups) if initial_state is None else initial_state.split(sequences)
    results = [
        _ChunkKDA.apply(*piece, state, scale, group, dtype, use_qk_l2norm, output_final_state)
        for piece, state, group in zip(pieces, states, groups, strict=True)
    ]
    if len(results) == 1:
        return *results[0], None
    outs, finals = zip(*results, strict=True)
    return torch.cat(outs), torch.cat(finals) if output_final_state else None, None


@dataclass
class _Run:
    """A forward pass. `states` holds the one before the first step and, if wanted, those after each.

    final, boundary: `[N, H, K, V]` if wanted: after and before the last chunk of each sequence.
    """

    x: Chunks
    scores: Tensor
    inverse: Tensor
    out: Tensor
    v_new: Tensor
    states: list[Tensor | None]
    final: Tensor | None = None
    boundary: Tensor | None = None


def _run(
    tensors: tuple[Tensor, ...],
    scale: float,
    initial_state: Tensor | None,
    layout: ChunkLayout,
    dtype: torch.dtype,
    normalise: bool,
    keep_states: bool = False,
    want_final: bool = False,
    want_boundary: bool = False,
) -> _Run:
    x, heads = Chunks.build(tensors, layout, dtype, normalise), tensors[0].shape[1]
    scores, inverse = x.solve()
    start = None if initial_state is None else initial_state.to(dtype)[layout.order].flatten(0, 1)
    run = _Run(x, scores, inverse, torch.empty_like(x.v), torch.empty_like(x.v), [start])

    empty = x.v.new_zeros(len(layout.order) * heads, x.k.shape[2], x.v.shape[2]) if start is None else start
    final = empty.clone() if want_final else None
    boundary = empty.clone() if want_boundary else None
    steps = Step.all(layout, heads)
    walk = scan(x, scores, inverse, start, scale, steps, run.out, run.v_new, want_final)
    for step, (before, after) in zip(steps, walk, strict=True):
        ended = slice(step.going_on, step.count)
        if keep_states:
            run.states.append(after)
        if final is not None:
            final[ended] = after[ended]
        if boundary is not None and before is not None:
            boundary[ended] = before[ended]
    if final is not None:
        run.final = final.unflatten(0, (-1, heads))[layout.rank]
    if boundary is not None:
        run.boundary = boundary.unflatten(0, (-1, heads))[layout.rank]
    return run


def _prefill(
    tensors: tuple[Tensor, ...],
    scale: float,
    initial_state: Tensor | None,
    layout: ChunkLayout,
    dtype: torch.dtype,
    normalise: bool,
) -> tuple[Tensor, Tensor, ChunkBuffer]:
    run = _run(tensors, scale, initial_state, layout, dtype, normalise, want_final=True, want_boundary=True)
    assert run.final is not None and run.boundary is not None  # asked for
    v, length = tensors[2], layout.tail % layout.chunk_size
    state = torch.where((length > 0).view(-1, 1, 1, 1), run.boundary, run.final)
    k, cumulative, v_new = (
        t.unflatten(0, (-1, v.shape[1]))[layout.last_chunk] for t in (run.x.k, run.x.cumulative, run.v_new)
    )
    out = layout.scatter(run.out.to(v.dtype), v.shape[1])
    return out, run.final, ChunkBuffer(state, k, cumulative, v_new, length)


class _ChunkKDA(torch.autograd.Function):
    """One group. What goes into the scan is not kept for the backward pass, but made again from the inputs."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor | None]:
        *tensors, initial_state, scale, layout, dtype, normalise, want_final = args
        keep = any(ctx.needs_input_grad)
        run = _run(tuple(tensors), scale, initial_state, layout, dtype, normalise, keep, want_final)
        if keep:
            ctx.save_for_backward(*tensors, run.scores, run.inverse, run.v_new, *run.states)
        ctx.scale, ctx.layout, ctx.dtype, ctx.normalise = scale, layout, dtype, normalise
        ctx.set_materialize_grads(False)
        v = tensors[2]
        return layout.scatter(run.out.to(v.dtype), v.shape[1]), run.final

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, grad_final: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, scores, inverse, v_new = ctx.saved_tensors[:8]
        states, layout = ctx.saved_tensors[8:], ctx.layout
        x, heads = Chunks.build(tuple(tensors), layout, ctx.dtype, ctx.normalise), tensors[0].shape[1]
        size = layout.chunk_size
        d_reads = x.rows.new_empty(len(x.v), 2 * size, x.v.shape[2])
        if grad_out is None:
            d_reads[:, size:] = 0.0
        else:
            torch.mul(layout.gather(grad_out), ctx.scale, out=d_reads[:, size:])
        if grad_final is None:
            d_state = x.v.new_zeros(len(layout.order) * heads, x.k.shape[2], x.v.shape[2])
        else:
            d_state = grad_final[layout.order].flatten(0, 1)
        d_q, *others = scan_gradients(
            x, scores, inverse, v_new, states, Step.all(layout, heads), d_reads, d_state, grad_final is not None
        )
        gradients = [layout.scatter(d_q, heads, size), *(layout.scatter(d, heads) for d in others)]
        d_initial = d_state.unflatten(0, (-1, heads))[layout.rank] if ctx.needs_input_grad[5] else None
        return (
            *(d.view_as(t).to(t.dtype) for d, t in zip(gradients, tensors, strict=True)), d_initial, *[None] * 5
        )
