"""Muon for hidden matrices, AdamW for all else: one optimizer to the learner, its schedule and its checkpoints.

Muon (Keller Jordan 2024; Moonlight, arXiv 2502.16982) steps along the momentum with its singular values brought to
about 1. With an update of the root mean square that AdamW's usually has, 0.2 times the rate, both share one learning
rate and one weight decay. Every matrix of a hidden layer is Muon's, a router's and each expert's too; the embedding,
the output matrix, convolutions, A_log, dt_bias, norms and biases are AdamW's, as are the stacked experts of some
HuggingFace models, because torch's Muon takes matrices only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim._muon import muon
from transformers import PreTrainedModel

from deltarl.rl.sharding import like, whole_tensor

MOMENTUM = 0.95  # Moonlight's
OPTIONS = ("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "ns_steps", "eps", "adjust_lr_fn")


def hidden_matrices(module: nn.Module) -> set[str]:
    """Names of the parameters that are Muon's."""
    outer = {p for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    for m in module.modules():
        head = m.get_output_embeddings() if isinstance(m, PreTrainedModel) else None
        outer |= set(head.parameters()) if isinstance(head, nn.Module) else set()
    return {name for name, p in module.named_parameters() if p.ndim == 2 and p not in outer}


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW` over one list of groups and one state.

    Sharded matrices are put together one at a time, on every rank, because Muon's update is one of whole matrices;
    its momentum stays sharded.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        groups: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
    ):
        """
        Args:
            matrices: Muon's parameters.
            groups: AdamW's parameter groups.
            weight_decay: of the matrices.
        """
        first = torch.optim.Muon(
            matrices, lr=lr, weight_decay=weight_decay, momentum=MOMENTUM, nesterov=True, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
        super().__init__([*first.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()  # the base class's declaration has an overload that returns the closure's loss
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None  # nobody passes one
        muon_group, *others = self.param_groups
        # Not once for all: `load_state_dict`, which Accelerate calls, puts new ones in their place.
        self._adamw.param_groups, self._adamw.state = others, self.state
        self._adamw.step()
        options = {key: muon_group[key] for key in OPTIONS}
        for p in muon_group["params"]:
            if p.grad is not None:
                self._step_matrix(p, options)

    def _step_matrix(self, p: nn.Parameter, options: dict[str, Any]) -> None:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        assert p.grad is not None
        parts = [p, p.grad, state["momentum_buffer"]]
        matrix, gradient, momentum = (whole_tensor(x) for x in parts)
        muon([matrix], [gradient], [momentum], has_complex=False, **options)
        if isinstance(p, DTensor):
            p.copy_(like(matrix, p))
            state["momentum_buffer"].copy_(like(momentum, p))
