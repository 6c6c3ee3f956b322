"""Optimizer and schedule on disk as safetensors and JSON: nothing that has to be unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltarl.rl.checkpoint import Write
from deltarl.rl.master_weights import plain_name
from deltarl.rl.sharding import like, whole

TENSORS, STATE = "optimizer.safetensors", "learner_state.json"


def optimizer_snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, counters: Mapping[str, int], keep: bool
) -> Write:
    """A copy of the optimizer's state, to be written later: its tensors as `{parameter}|{slot}`
    (`lm_head.weight|exp_avg`), the rest and `counters` as JSON. Tensors are whole, so that any number of ranks can read
    them.

    Args:
        keep: on the rank that will write. The others only take part where tensors are sharded.
    """
    tensors = {
        f"{plain_name(name)}|{slot}": value
        for name, p in model.named_parameters()
        for slot, value in optimizer.state.get(p, {}).items()
    }
    tensors = whole(tensors, keep, copy=True)
    last_lr = [group["lr"] for group in optimizer.param_groups]
    state = json.dumps({**counters, "last_epoch": scheduler.last_epoch, "lr": last_lr})

    def write(folder: Path) -> None:
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / TENSORS)
        (folder / STATE).write_text(state)

    return write


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> dict[str, Any]:
    """Restores what `optimizer_snapshot` wrote; returns the JSON, with the counters."""
    parameters = {plain_name(name): p for name, p in model.named_parameters()}
    for key, value in load_file(folder / TENSORS).items():
        name, slot = key.split("|")
        p = parameters[name]
        optimizer.state[p][slot] = like(value, p) if slot != "step" else value.to(p.device)
    state = json.loads((folder / STATE).read_text())
    scheduler.last_epoch = state["last_epoch"]
    scheduler._last_lr = state["lr"]
    for group, lr in zip(optimizer.param_groups, state["lr"], strict=True):
        group["lr"] = lr
    return state
