"""A faster stand-in for the chunkwise KDA that transformers runs where flash-linear-attention cannot (on a CPU).

transformers' own is a readable reference: chunks of 64 with all pairwise decays and a row-by-row solve. This one keeps
its arguments and results, with chunks of 16, factored decays and `solve_triangular`. It is exact to fp32 rounding
while the decay within 16 tokens stays below `FACTOR_LIMIT` nats.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.kimi_linear import modeling_kimi_linear

CHUNK = 16
FACTOR_LIMIT = 60.0


def install() -> None:
    """Makes every KimiLinear layer of this process use `chunk16_kda`."""
    modeling_kimi_linear.chunk_kimi_delta_attention = chunk16_kda


def chunk16_kda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    **unused: Any,
) -> tuple[Tensor, Tensor | None]:
    """`[B, T, H, K]` query, key, log decay, `[B, T, H, V]` value, `[B, T, H]` beta to output and final state."""
    length = query.shape[1]
    q, k, v, g, b = (_chunks(x) for x in (query, key, value, g, beta.unsqueeze(-1)))
    q, k = _l2norm(q) * q.shape[-1] ** -0.5, _l2norm(k)
    total = g.cumsum(-2)
    decay, inverse = total.exp(), (-total).clamp_max(FACTOR_LIMIT).exp()
    k_in, k_out, q_in = k * decay, (k * inverse).transpose(-1, -2), q * decay
    solved = torch.linalg.solve_triangular(
        b * (k_in @ k_out), torch.cat([b * v, b * k_in], -1), upper=False, unitriangular=True
    )
    v_solved, k_solved = solved.split([v.shape[-1], k.shape[-1]], -1)
    attend = (q_in @ k_out).tril()
    k_end = (k * (total[..., -1:, :] - total).exp()).transpose(-1, -2)
    decay_end = decay[..., -1, :].unsqueeze(-1)
    state = v.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]) if initial_state is None else initial_state
    outputs = []
    for q_i, attend_i, v_i, k_i, k_end_i, decay_i in zip(
        *(x.unbind(2) for x in (q_in, attend, v_solved, k_solved, k_end, decay_end)), strict=True
    ):
        v_new = v_i - k_i @ state
        outputs.append(q_i @ state + attend_i @ v_new)
        state = decay_i * state + k_end_i @ v_new
    out = torch.cat(outputs, 2)[:, :, :length].transpose(1, 2).to(query.dtype)
    return out, state if output_final_state else None


def _chunks(x: Tensor) -> Tensor:
    """`[B, T, H, D]` to `[B, H, T/16, 16, D]` in fp32, T filled up with zeros, which leave the state as it is."""
    x = F.pad(x.transpose(1, 2).float(), (0, 0, 0, -x.shape[1] % CHUNK))
    return x.unflatten(2, (-1, CHUNK))


def _l2norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)
