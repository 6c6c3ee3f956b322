"""RMSNorm and the two feed-forward layers: dense and mixture of experts. Parameter names are the checkpoint's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import KimiLinearConfig

from deltarl.kernels.precision import MIN_ROWS
from deltarl.model.routing import Routing


class RMSNorm(nn.Module):
    """`weight · x / sqrt(mean(x²) + eps)`, computed in fp32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:  # in one launch, rounded once
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        return self.weight * F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps).to(x.dtype)


class MLP(nn.Module):
    """SwiGLU: `down(silu(gate x) · up x)`."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Expert(nn.Module):
    """An MLP under the names experts have in the checkpoint: w1 gate, w3 up, w2 down."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.w1 = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.w2 = nn.Linear(intermediate_size, hidden_size, bias=False)
        self.w3 = nn.Linear(hidden_size, intermediate_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Router(nn.Module):
    """Sigmoid router, limited to the best expert groups; the correction bias steers the choice, never the weight.

    (In the first released reference code the bias leaked into the weights through an in-place add; vLLM, transformers
    and this code keep it out.)
    """

    e_score_correction_bias: Tensor

    def __init__(self, config: KimiLinearConfig, layer: int):
        """`layer`: which of the layers with experts it is in."""
        super().__init__()
        self.layer = layer
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.num_local_experts))
        assert config.num_experts_per_tok is not None  # only the class allows it
        assert config.topk_group is not None
        self.top_k = config.num_experts_per_tok
        self.groups, self.topk_group = config.n_group, config.topk_group
        self.renormalize, self.scaling = config.norm_topk_prob, config.routed_scaling_factor

    def forward(self, x: Tensor, routing: Routing | None = None) -> tuple[Tensor, Tensor]:
        """`[T, D]` to the weights and indices of the chosen experts, `[T, top_k]` each, weights in fp32.

        Experts that `routing` gives are weighted by this router's scores of them, through which it learns.
        """
        scores = F.linear(x.float(), self.weight.float()).sigmoid()
        choice = scores + self.e_score_correction_bias
        if self.groups > 1:
            grouped = choice.unflatten(-1, (self.groups, -1))
            best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.topk_group, dim=-1).indices
            keep = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter_(-1, best, True)
            choice = grouped.masked_fill(~keep.unsqueeze(-1), float("-inf")).flatten(-2)
        index = choice.topk(self.top_k, dim=-1).indices
        if routing is not None:
            index = routing.take(self.layer, index)
        weight = scores.gather(-1, index)
        if self.renormalize:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        return weight * self.scaling, index


class SparseMoE(nn.Module):
    """Routed experts plus the shared expert every token passes."""

    def __init__(self, config: KimiLinearConfig, layer: int):
        """`layer`: which of the layers with experts it is."""
        super().__init__()
        self.gate = Router(config, layer)
        self.experts = nn.ModuleList(
            Expert(config.hidden_size, config.moe_intermediate_size) for _ in range(config.num_local_experts)
        )
        self.shared_experts = MLP(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, x: Tensor, routing: Routing | None = None) -> Tensor:
        weight, index = self.gate(x, routing)
        out = self.shared_experts(x)
        for e, expert in enumerate(self.experts):
            token, rank = (index == e).nonzero(as_tuple=True)
            # When learning, every expert takes part: ranks that add up gradients must all have the same ones.
            if len(token) or torch.is_grad_enabled():
                # Filled up with zero rows: how many tokens an expert gets must not change how they are rounded.
                chosen = F.pad(x[token], (0, 0, 0, max(0, MIN_ROWS - len(token))))
                mixed = expert(chosen)[: len(token)] * weight[token, rank, None]
                out = out.index_add(0, token, mixed.to(out.dtype))
        return out
