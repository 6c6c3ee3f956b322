"""Optimizer and learning-rate schedule, for the policy and for a critic."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from deltarl.rl.config import LearnerConfig
from deltarl.rl.muon import MuonWithAdamW, hidden_matrices


def adamw(module: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW over the parameters of `module`."""
    return torch.optim.AdamW(_parameter_groups(module, weight_decay), lr=lr, betas=betas, fused=True)


def policy_optimizer(module: nn.Module, config: LearnerConfig) -> torch.optim.Optimizer:
    """What `config.optimizer` names, over the parameters of the policy."""
    betas = (config.adam_beta1, config.adam_beta2)
    if config.optimizer == "adamw":
        return adamw(module, lr=config.learning_rate, weight_decay=config.weight_decay, betas=betas)
    names = hidden_matrices(module)
    rest = _parameter_groups(module, config.weight_decay, without=names)
    matrices = [p for name, p in module.named_parameters() if name in names]
    return MuonWithAdamW(matrices, rest, config.learning_rate, config.weight_decay, betas)


def lr_schedule(name: str, optimizer: torch.optim.Optimizer, warmup_steps: int, total_updates: int) -> Any:
    """`constant`, `linear` or `cosine`, after a linear warm-up."""
    if name == "constant":
        return get_scheduler("constant_with_warmup", optimizer, warmup_steps)
    return get_scheduler(name, optimizer, warmup_steps, total_updates)


def _parameter_groups(module: nn.Module, weight_decay: float, without: Collection[str] = ()) -> list[dict[str, Any]]:
    """Weight decay for matrices only: never for norms, A_log, dt_bias and other vectors."""
    parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad and name not in without]
    matrices = [p for name, p in parameters if p.ndim >= 2 and not name.endswith("A_log")]
    vectors = [p for name, p in parameters if p.ndim < 2 or name.endswith("A_log")]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
