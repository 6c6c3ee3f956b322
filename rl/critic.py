"""The critic of PPO: what it says, how it learns, how it is kept."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deltarl.model.checkpoint import load_model
from deltarl.model.value import HybridForValues
from deltarl.rl.batch import Minibatch, PackedBatch, TrainSample
from deltarl.rl.checkpoint import Write
from deltarl.rl.config import LearnerConfig, Sharding
from deltarl.rl.config.critic import CriticConfig
from deltarl.rl.master_weights import hold_masters, masters
from deltarl.rl.objectives.value import value_loss
from deltarl.rl.optimizer import adamw, lr_schedule
from deltarl.rl.optimizer_io import load_optimizer, optimizer_snapshot
from deltarl.rl.sharding import join, load_whole, whole, whole_tensor
from deltarl.rl.update_stats import UpdateStats

FOLDER, TENSORS = "critic", "critic.safetensors"


class Critic:
    """A value model with its own optimizer; with a shared trunk, the head alone is in its hands.

    Its loss is a mean over the tokens of the global minibatch, whatever the aggregation of the policy's.
    """

    def __init__(
        self,
        config: CriticConfig,
        accelerator: Accelerator,
        module: nn.Module,
        betas: tuple[float, float],
        sharding: Sharding,
    ):
        """
        Args:
            module: a value head on the policy's trunk, which has been joined to the other ranks', or a
                `HybridForValues`, which is joined here.
        """
        self.config, self._accelerator, self.module = config, accelerator, module
        self._model = join(module, accelerator, sharding) if isinstance(module, HybridForValues) else None
        optimizer = adamw(module, lr=config.learning_rate, weight_decay=config.weight_decay, betas=betas)
        self.optimizer = accelerator.prepare(optimizer)
        self._scheduler = lr_schedule("constant", optimizer, config.warmup_steps, 0)

    @property
    def has_trunk(self) -> bool:
        return self._model is not None

    def values(self, batch: PackedBatch) -> Tensor:
        """`[n]` the value of the state before each completion token; only with a trunk of its own."""
        return _values(self.module, batch)

    def accumulate(self, minibatch: Minibatch, runs: Sequence[list[TrainSample]], stats: UpdateStats) -> Tensor:
        """Adds up the gradient of one minibatch, cut into `runs`, and returns this rank's part of its loss; only with
        a trunk of its own."""
        assert self._model is not None
        minimised = torch.zeros((), device=self._accelerator.device)
        for i, run in enumerate(runs):
            with nullcontext() if i == len(runs) - 1 else self._accelerator.no_sync(self._model):
                batch = PackedBatch.pack(run, self._accelerator.device)
                loss = self.loss(_values(self._model, batch), batch, minibatch, stats)
                self._accelerator.backward(loss)
            minimised += loss.detach()
        return minimised

    def loss(self, values: Tensor, batch: PackedBatch, minibatch: Minibatch, stats: UpdateStats) -> Tensor:
        """What a micro-batch adds to the loss of the minibatch."""
        assert batch.values is not None  # the loop asked for them before
        assert batch.returns is not None
        out = value_loss(values, batch.values, batch.returns, self.config.value_clip)
        stats.add_values(out)
        scale = self.config.value_coef * self._accelerator.num_processes / minibatch.global_tokens
        return out.loss.sum() * scale

    def clip_gradient(self) -> Tensor:
        """The norm of the gradient before it was clipped."""
        norm = self._accelerator.clip_grad_norm_(self.module.parameters(), self.config.max_grad_norm)
        return whole_tensor(norm)

    def step(self) -> None:
        self.optimizer.step()
        self._scheduler.step()

    def snapshot(self) -> Write:
        """A copy of weights and optimizer, for a folder of its own in the checkpoint; to be called on every rank."""
        main = self._accelerator.is_main_process
        state = whole(self.module.state_dict() | masters(self.module), keep=main, copy=True)
        write_optimizer = optimizer_snapshot(self.module, self.optimizer.optimizer, self._scheduler, {}, keep=main)

        def write(folder: Path) -> None:
            (folder / FOLDER).mkdir()
            save_file({name: x.contiguous() for name, x in state.items()}, folder / FOLDER / TENSORS)
            write_optimizer(folder / FOLDER)

        return write

    def load(self, folder: Path) -> None:
        load_whole(self.module, load_file(folder / FOLDER / TENSORS))
        load_optimizer(folder / FOLDER, self.module, self.optimizer.optimizer, self._scheduler)


def own_trunk(model_path: str, device: torch.device, config: LearnerConfig) -> HybridForValues:
    """A critic that starts as a copy of the policy, and learns in fp32."""
    critic = HybridForValues(load_model(model_path).model)
    critic.trunk.activation_checkpointing = config.activation_checkpointing
    hold_masters(critic, keep_rounded=config.sharding == "none")
    return critic.to(device)


def _values(model: Any, batch: PackedBatch) -> Tensor:
    values = model(input_ids=batch.input_ids.unsqueeze(0), cu_seqlens=batch.cu_seqlens, positions=batch.predictor)
    return values.squeeze(0)
