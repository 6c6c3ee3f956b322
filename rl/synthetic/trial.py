"""One model trained on one task by next-token loss, and scored on held-out sequences as it learns."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deltarl.kernels.precision import without_sampler
from deltarl.model.checkpoint import round_weights
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.rl.config import LearnerConfig, ModelConfig
from deltarl.rl.master_weights import hold_masters, masters
from deltarl.rl.optimizer import lr_schedule, policy_optimizer
from deltarl.rl.synthetic.step import TrainingStep
from deltarl.rl.synthetic.tasks import VOCAB_SIZE, Batch, make
from deltarl.rl.warm_start import new_model

HELD_OUT, TRAINING = 0, 1  # streams of random numbers


@dataclass(frozen=True)
class Trial:
    task: str
    length: int
    """Tokens of a sequence, answers included."""
    arm: str
    """Name of the architecture."""
    seed: int
    """Of the weights and of the sequences to learn from, which are the same for every arm."""
    learning_rate: float
    steps: int
    batch_size: int
    eval_interval: int
    eval_sequences: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.length}-{self.arm}-lr{self.learning_rate:g}-seed{self.seed}"


def run_trial(
    trial: Trial, model: ModelConfig, folder: Path, tell: Callable[[dict[str, float]], None]
) -> dict[str, Any]:
    """Trains, or goes on where a trial of the same name stopped; writes `folder/name.json`, or reads one that is there.

    It ends early once no held-out token is wrong. Weights are fp32 on a CPU, and bf16 with fp32 masters on a GPU.

    Args:
        tell: called with the point of the curve at every evaluation.

    Returns:
        The trial's fields, `model`, `parameters`, and `curve`: at each evaluation `step`, `loss` (of training, mean
        since the last), `token_accuracy` and `sequence_accuracy`.

    Raises:
        ValueError: the task does not have the length, or the folder holds a trial of this name with other settings.
    """
    settings = asdict(trial) | {"model": model.model_dump()}
    done, begun = folder / f"{trial.name}.json", folder / f"{trial.name}.pt"
    if done.exists():
        result = json.loads(done.read_text())
        _check_same(settings, result, done)
        return result
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = new_model(model, VOCAB_SIZE, trial.seed)
    policy.to(device)  # type: ignore[arg-type]  # transformers wraps it so that its type is lost
    if device.type == "cuda":
        hold_masters(round_weights(policy, torch.bfloat16), keep_rounded=True)
    config = LearnerConfig(learning_rate=trial.learning_rate, warmup_steps=min(200, trial.steps // 10))
    optimizer = policy_optimizer(policy, config)
    scheduler = lr_schedule("cosine", optimizer, config.warmup_steps, trial.steps)
    parts: dict[str, Any] = {"model": policy, "optimizer": optimizer, "scheduler": scheduler}
    curve: list[dict[str, float]] = []
    if begun.exists():
        state = torch.load(begun, map_location=device, weights_only=True)
        _check_same(settings, state["settings"], begun)
        for key, part in parts.items():
            part.load_state_dict(state[key])
        curve = state["curve"]

    def training_batch(step: int) -> Batch:
        rng = np.random.default_rng((TRAINING, trial.seed, step))
        return make(trial.task, rng, trial.batch_size, trial.length)

    held_out = make(trial.task, np.random.default_rng((HELD_OUT, trial.length)), trial.eval_sequences, trial.length)
    losses = list[Tensor]()
    learn = TrainingStep(policy, training_batch(1), config.max_grad_norm)
    start = int(curve[-1]["step"]) if curve else 0
    for step in range(start + 1, trial.steps + 1):
        losses.append(learn(training_batch(step)))
        optimizer.step()
        scheduler.step()
        if step % trial.eval_interval == 0 or step == trial.steps:
            loss = float(torch.stack(losses).mean())
            point = {"step": step, "loss": loss} | score(policy, held_out, trial.batch_size)
            curve.append(point)
            losses.clear()
            tell(point)
            if point["token_accuracy"] == 1.0:
                break
            state = {key: part.state_dict() for key, part in parts.items()} | {"settings": settings, "curve": curve}
            state["model"] |= masters(policy)
            _replace(begun, partial(torch.save, state))
    result = settings | {"parameters": policy.num_parameters(), "curve": curve}
    _replace(done, lambda file: file.write_text(json.dumps(result)))
    begun.unlink(missing_ok=True)
    return result


@torch.no_grad()
def score(policy: HybridForCausalLM, batch: Batch, at_once: int) -> dict[str, float]:
    """Share of the wanted tokens that get the highest logit, and of the sequences in which all do.

    Args:
        at_once: sequences of a forward pass.
    """
    right = np.zeros(batch.ids.shape, bool)
    for first in range(0, len(batch.ids), at_once):
        rows = slice(first, first + at_once)
        piece = Batch(batch.ids[rows], batch.wanted[rows])
        ids, predictor, target = _packed(piece, policy.device)
        with without_sampler():
            logits = policy(ids, cu_seqlens=_bounds(piece, policy.device), logits_to_keep=predictor).logits
        right[rows][piece.wanted] = (logits.argmax(-1).squeeze(0) == target).cpu().numpy()
    return {
        "token_accuracy": float(right[batch.wanted].mean()),
        "sequence_accuracy": float((right | ~batch.wanted).all(1).mean()),
    }


def _packed(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences end to end `[1, B*T]`, positions that predict wanted tokens `[n]`, and these tokens `[n]`."""
    flat = batch.ids.reshape(-1)
    (wanted,) = batch.wanted.reshape(-1).nonzero()
    ids, predictor, target = (torch.from_numpy(x).to(device) for x in (flat, wanted - 1, flat[wanted]))
    return ids.unsqueeze(0), predictor, target


def _bounds(batch: Batch, device: torch.device) -> Tensor:
    count, length = batch.ids.shape
    return torch.arange(0, count * length + 1, length, device=device)


def _check_same(settings: dict[str, Any], found: dict[str, Any], file: Path) -> None:
    differ = [key for key, value in settings.items() if found.get(key) != value]
    if differ:
        raise ValueError(
            f"{file} is of another {differ[0]} ({found.get(differ[0])} there, {settings[differ[0]]} here): "
            "choose another folder, or delete it"
        )


def _replace(file: Path, write: Callable[[Path], Any]) -> None:
    """Writes the whole file or leaves the one there is."""
    temporary = file.with_name(f".{file.name}")
    write(temporary)
    os.replace(temporary, file)
