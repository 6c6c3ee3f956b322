"""KDA a chunk at a time: the form that trains and prefills.

Within a chunk with cumulative log decay G (arXiv 2510.26692, Eqs. 2-9, in the notation of the flash-linear-attention
kernels), S being the state at the start of the chunk:

    Akk[i,j] = Σ_d k_i k_j exp(G_i − G_j)  (i > j)          Aqk[i,j] = scale Σ_d q_i k_j exp(G_i − G_j)  (i ≥ j)
    (I + Diag(β) Akk) v' = β (v − (e^G k) S)                the delta rule of the chunk, one triangular solve
    o = scale (e^G q) S + Aqk v'                            S⁺ = Diag(e^{G_C}) S + (e^{G_C−G} k)ᵀ v'

`scan.py` has the arithmetic, `scan_backward.py` its gradients. `decode.py` computes one row of exactly this, so that
sampler and learner agree to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltarl.kernels.layout import ChunkLayout
from deltarl.kernels.memory import keep_freed_memory
from deltarl.kernels.scan import Chunks, Scan, Step
from deltarl.kernels.scan_backward import scan_gradients

CHUNK_SIZE = 16

# On a CPU a batch is worked through in groups of sequences: what one group needs stays in the processor's cache, and
# the next uses the same memory again. Its q takes at least GROUP_BYTES; and that of a token of each of its sequences
# STEP_BYTES, or the calls of a step along the sequences would cost more than what they compute.
GROUP_BYTES = 1 << 20
STEP_BYTES = 1 << 13

keep_freed_memory()


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
    tensors = (q, k, v, g, beta)
    options = _Options(scale, dtype or v.dtype, use_qk_l2norm, output_final_state)
    with torch.autocast(v.device.type, enabled=False):
        if output_buffer:
            with torch.no_grad():
                return _prefill(tensors, initial_state, layout, options)
        token_bytes = q.shape[1] * q.shape[2] * options.dtype.itemsize
        groups = _groups(layout, token_bytes) if v.device.type == "cpu" else (layout,)
        # Split once: the gradient of n slices is n sums over the whole tensor, that of one split a concatenation.
        pieces = zip(*(x.split([sum(group.lengths) for group in groups]) for x in tensors), strict=True)
        sequences = [len(group.lengths) for group in groups]
        states = [None] * len(groups) if initial_state is None else initial_state.split(sequences)
        results = [
            _ChunkKDA.apply(*piece, state, group, options)
            for piece, state, group in zip(pieces, states, groups, strict=True)
        ]
    if len(results) == 1:
        return *results[0], None
    outs, finals = zip(*results, strict=True)
    return torch.cat(outs), torch.cat(finals) if output_final_state else None, None


def _groups(layout: ChunkLayout, token_bytes: int) -> tuple[ChunkLayout, ...]:
    return layout.groups(least=-(-STEP_BYTES // token_bytes), enough=-(-GROUP_BYTES // token_bytes))


@dataclass(frozen=True)
class _Options:
    scale: float
    dtype: torch.dtype
    normalise: bool
    final: bool


@dataclass
class _Run:
    """A forward pass. final, boundary: `[N, H, K, V]` if wanted, after and before the last chunk of each sequence."""

    x: Chunks
    scan: Scan
    out: Tensor
    final: Tensor | None
    boundary: Tensor | None


def _run(
    tensors: Sequence[Tensor],
    initial_state: Tensor | None,
    layout: ChunkLayout,
    options: _Options,
    keep_states: bool = False,
    keep_boundary: bool = False,
) -> _Run:
    x, heads = Chunks.build(tensors, layout, options.dtype, options.normalise), tensors[0].shape[1]
    state_shape = (len(layout.order), heads, x.k.shape[2], x.v.shape[2])
    start = None if initial_state is None else initial_state.to(options.dtype)[layout.order].flatten(0, 1)
    scan, out = Scan.prepare(x, start), torch.empty_like(x.v)

    def begun() -> Tensor:
        return x.v.new_zeros(state_shape).flatten(0, 1) if start is None else start.clone()

    final, boundary = begun() if options.final else None, begun() if keep_boundary else None
    steps = Step.all(layout, heads)
    for step, (before, after) in zip(steps, scan.advance(x, steps, options.scale, out, options.final), strict=True):
        ended = slice(step.going_on, step.count)
        if keep_states:
            scan.states.append(after)
        if final is not None:
            final[ended] = after[ended]
        if boundary is not None and before is not None:
            boundary[ended] = before[ended]
    final, boundary = (None if x is None else x.view(state_shape)[layout.rank] for x in (final, boundary))
    return _Run(x, scan, out, final, boundary)


def _prefill(
    tensors: Sequence[Tensor], initial_state: Tensor | None, layout: ChunkLayout, options: _Options
) -> tuple[Tensor, Tensor | None, ChunkBuffer]:
    run = _run(tensors, initial_state, layout, replace(options, final=True), keep_boundary=True)
    assert run.final is not None  # asked for, both
    assert run.boundary is not None
    assert run.x.cumulative is not None  # as of any forward pass
    v, length = tensors[2], layout.tail % layout.chunk_size
    state = torch.where((length > 0).view(-1, 1, 1, 1), run.boundary, run.final)
    k, cumulative, v_new = (
        x.unflatten(0, (-1, v.shape[1]))[layout.last_chunk] for x in (run.x.k, run.x.cumulative, run.scan.v_new)
    )
    out = layout.scatter(run.out, v.shape[1], v.dtype)
    return out, run.final if options.final else None, ChunkBuffer(state, k, cumulative, v_new, length)


class _ChunkKDA(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor | None]:
        *tensors, initial_state, layout, options = args
        run = _run(tensors, initial_state, layout, options, keep_states=any(ctx.needs_input_grad))
        heads, dtypes = tensors[0].shape[1], [x.dtype for x in tensors]
        ctx.layout, ctx.scale, ctx.heads, ctx.dtypes = layout, options.scale, heads, dtypes
        ctx.save_for_backward(*run.x.inputs(), run.scan.scores, run.scan.inverse, run.scan.v_new, *run.scan.states)
        ctx.set_materialize_grads(False)
        return layout.scatter(run.out, heads, dtypes[2]), run.final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, grad_final: Tensor | None) -> tuple[Tensor | None, ...]:
        layout, heads, saved = ctx.layout, ctx.heads, ctx.saved_tensors
        x, (scores, inverse, v_new, *states) = Chunks(*saved[:8]), saved[8:]
        scan = Scan(scores, inverse, v_new, states)
        state_shape, size = (len(layout.order), heads, x.k.shape[2], x.v.shape[2]), layout.chunk_size
        d_reads = x.v.new_empty(len(x.v), 2 * size, x.v.shape[2])
        d_reads[:, size:] = 0.0 if grad_out is None else layout.gather(grad_out)
        d_reads[:, size:] *= ctx.scale
        d_state = x.v.new_zeros(state_shape) if grad_final is None else grad_final[layout.order]
        with torch.autocast(x.v.device.type, enabled=False):
            gradients = scan_gradients(
                x, scan, Step.all(layout, heads), d_reads, d_state.flatten(0, 1), has_final=grad_final is not None
            )
        d_tokens = [layout.scatter(d, heads, dtype) for d, dtype in zip(gradients, ctx.dtypes, strict=True)]
        d_tokens[4] = d_tokens[4].squeeze(-1)
        return *d_tokens, d_state[layout.rank] if ctx.needs_input_grad[5] else None, None, None
