"""The entry point to Kimi Delta Attention over whole sequences: chooses the implementation, checks shapes."""

from typing import Any

import torch
from torch import Tensor

from deltarl.kernels.backend import choose_backend
from deltarl.kernels.chunk import CHUNK_SIZE, chunk_kda
from deltarl.kernels.gate import l2norm
from deltarl.kernels.layout import ChunkLayout
from deltarl.kernels.precision import core_dtype
from deltarl.kernels.recurrent import recurrent_kda


def kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm: bool = False,
    cu_seqlens: Tensor | None = None,
    layout: ChunkLayout | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Kimi Delta Attention (arXiv 2510.26692, Eq. 1), with the argument shapes of flash-linear-attention's `chunk_kda`.

    Args:
        q, k: `[B, T, H, K]`.  v: `[B, T, H, V]`.  g: `[B, T, H, K]` log decay, at most 0.  beta: `[B, T, H]`.
        scale: factor on q, `K**-0.5` if None.
        initial_state: `[N, H, K, V]`, zeros if None; N is B, or the number of packed sequences.
        use_qk_l2norm: normalise q and k first.
        cu_seqlens: `[N+1]` bounds of sequences packed along T; B must be 1. The state is reset at every bound.
        layout: `ChunkLayout` of `cu_seqlens`, to be shared by the layers of a model.
        backend: "triton", "chunk" or "recurrent"; see `choose_backend` for None.

    Returns:
        Output `[B, T, H, V]` in v's dtype, and the final state `[N, H, K, V]` in `core_dtype` or None.

    Raises:
        ValueError: on shapes that do not fit together, an unknown backend or one that cannot run.
    """
    batch, length, heads, key_dim = q.shape
    if k.shape != q.shape or g.shape != q.shape or beta.shape != q.shape[:3] or v.shape[:3] != q.shape[:3]:
        inputs = {"q": q, "k": k, "v": v, "g": g, "beta": beta}
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in inputs.items())
        raise ValueError(f"KDA takes q, k, g [B,T,H,K], v [B,T,H,V], beta [B,T,H]; got {shapes}")
    if cu_seqlens is None:
        cu_seqlens = torch.arange(0, (batch + 1) * length, length, device=q.device) if length else None
    elif batch != 1:
        raise ValueError(f"packed sequences (cu_seqlens) need B = 1, got B = {batch}")
    if cu_seqlens is None or int(cu_seqlens[-1]) != batch * length:
        raise ValueError(f"cu_seqlens must end at the number of tokens {batch * length}; at least one token is needed")

    backend = choose_backend(v.device, v.dtype, key_dim, v.shape[-1], backend)
    state: Tensor | None
    dtype = core_dtype(v.device, v.dtype)  # the state is never kept in less than fp32
    out_dtype, value_dim = v.dtype, v.shape[-1]
    state_shape = (len(cu_seqlens) - 1, heads, key_dim, value_dim)
    if initial_state is not None and initial_state.shape != state_shape:
        raise ValueError(f"initial_state must be [N,H,K,V] = {state_shape}, got {tuple(initial_state.shape)}")
    if backend == "triton":
        from deltarl.kernels.gpu.chunk import chunk_kda as triton_kda  # triton is not everywhere

        return triton_kda(
            q,
            k,
            v,
            g,
            beta,
            scale=scale,
            initial_state=initial_state,
            output_final_state=output_final_state,
            use_qk_l2norm_in_kernel=use_qk_l2norm,
            cu_seqlens=cu_seqlens,
        )
    scale = key_dim**-0.5 if scale is None else scale
    q, k, v, g, beta = (x.flatten(0, 1) for x in (q, k, v, g, beta))
    if backend == "recurrent":
        q, k, v, g, beta = (x.to(dtype) for x in (q, k, v, g, beta))
        if use_qk_l2norm:
            q, k = l2norm(q), l2norm(k)
        start = v.new_zeros(state_shape) if initial_state is None else initial_state.to(dtype)
        out, state = recurrent_kda(q, k, v, g, beta, scale, start, cu_seqlens)
    else:
        layout = layout or ChunkLayout.build(cu_seqlens, CHUNK_SIZE)
        options: dict[str, Any] = {"use_qk_l2norm": use_qk_l2norm, "output_final_state": output_final_state}
        out, state, _ = chunk_kda(q, k, v, g, beta, scale, initial_state, layout, dtype=dtype, **options)
    return out.to(out_dtype).view(batch, length, heads, value_dim), state if output_final_state else None
