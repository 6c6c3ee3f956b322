"""KDA token by token: the definition, written to be read. Everything else is checked against it."""

from itertools import pairwise

import torch
from torch import Tensor


def recurrent_kda(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float, initial_state: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor]:
    """Kimi Delta Attention as a recurrence over tokens (arXiv 2510.26692, Eq. 1), one sequence at a time.

        S ← Diag(exp(g_t)) S;   S ← S + β_t k_t (v_t − Sᵀ k_t)ᵀ;   o_t = scale · Sᵀ q_t

    The decay comes first; the delta rule then corrects the decayed state.

    Args:
        q, k: `[T, H, K]`, already normalised.  v: `[T, H, V]`.  g: `[T, H, K]` log decay, at most 0.
        beta: `[T, H]` in (0, 1).  initial_state: `[N, H, K, V]`.  cu_seqlens: `[N+1]` sequence bounds.

    Returns:
        Output `[T, H, V]` and final state `[N, H, K, V]`. Differentiable; computes in the dtype of its inputs.
    """
    bounds = cu_seqlens.tolist()
    outputs, finals = [v.new_zeros(0, *v.shape[1:])], []
    for n, (start, end) in enumerate(pairwise(bounds)):
        state = initial_state[n]
        for t in range(start, end):
            state = g[t].exp().unsqueeze(-1) * state
            error = v[t] - torch.einsum("hk,hkv->hv", k[t], state)
            state = state + beta[t, :, None, None] * torch.einsum("hk,hv->hkv", k[t], error)
            outputs.append(scale * torch.einsum("hk,hkv->hv", q[t], state)[None])
        finals.append(state)
    return torch.cat(outputs), torch.stack(finals)
