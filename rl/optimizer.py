"""Optimizer and learning-rate schedule, for the policy and for a critic."""

from typing import Any

import torch
from torch import nn
from transformers import get_scheduler


def adamw(module: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW over the parameters of `module`."""
    return torch.optim.AdamW(_parameter_groups(module, weight_decay), lr=lr, betas=betas, fused=True)


def lr_schedule(name: str, optimizer: torch.optim.Optimizer, warmup_steps: int, total_updates: int) -> Any:
    """`constant`, `linear` or `cosine`, after a linear warm-up."""
    if name == "constant":
        return get_scheduler("constant_with_warmup", optimizer, warmup_steps)
    return get_scheduler(name, optimizer, warmup_steps, total_updates)


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only: never for norms, A_log, dt_bias and other vectors."""
    matrices = [p for name, p in module.named_parameters() if p.ndim >= 2 and not name.endswith("A_log")]
    vectors = [p for name, p in module.named_parameters() if p.ndim < 2 or name.endswith("A_log")]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
