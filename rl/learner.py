"""The learner: scored answers in, new weights out. One process of possibly several; Accelerate joins them."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from transformers import get_scheduler

from deltarl.model.checkpoint import load_model
from deltarl.model.config import mlp_kinds
from deltarl.model.weights import WeightUpdate
from deltarl.rl.batch import Minibatch, PackedBatch, micro_batches
from deltarl.rl.config import LearnerConfig
from deltarl.rl.loss import grpo_loss
from deltarl.rl.optimizer_io import load_optimizer, save_optimizer
from deltarl.rl.ranks import on_cpu
from deltarl.rl.update_stats import UpdateStats


class Learner:
    """Holds the policy and its optimizer.

    The loss of an update is normalised by the completion tokens of the whole global minibatch, so that the gradient is
    the same for any micro-batch size and any number of ranks.
    """

    def __init__(self, config: LearnerConfig, model_path: str, total_updates: int, temperature: float):
        """
        Args:
            model_path: checkpoint folder of the policy; also the reference model if `config.beta` is above 0.
            total_updates: optimizer steps of the whole run, for the learning-rate schedule.
            temperature: at which answers are sampled; log-probabilities are taken at it.
        """
        self.config, self.temperature, self.version = config, temperature, 0
        model = load_model(model_path)
        unused = "sparse" in mlp_kinds(model.config)  # an expert may get no token
        ddp = DistributedDataParallelKwargs(find_unused_parameters=unused)
        self.accelerator = Accelerator(cpu=on_cpu(), kwargs_handlers=[ddp])
        self.reference = load_model(model_path).to(self.accelerator.device).eval() if config.beta > 0 else None
        optimizer = torch.optim.AdamW(
            _parameter_groups(model, config.weight_decay),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            fused=True,
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        # Not prepared: an Accelerate scheduler would step once per rank.
        self.scheduler = get_scheduler(config.lr_schedule, optimizer, config.warmup_steps, total_updates)
        if config.lr_schedule == "constant":
            self.scheduler = get_scheduler("constant_with_warmup", optimizer, config.warmup_steps)

    def update(self, minibatches: Sequence[Minibatch]) -> dict[str, float]:
        """One optimizer step per minibatch.

        Args:
            minibatches: this rank's share of each, at least one sample.

        Returns:
            Metrics of the whole batch, the same on every rank.

        Raises:
            FloatingPointError: the gradient is not finite; the weights are as before that step.
        """
        self.model.train()
        stats = UpdateStats()
        for i, minibatch in enumerate(minibatches):
            self._accumulate(minibatch, stats, on_policy=i == 0)
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
            if not torch.isfinite(norm):
                self.optimizer.zero_grad()
                raise FloatingPointError(
                    f"the gradient norm of update {self.version + 1} is {norm.item()}; lower learner.learning_rate, "
                    "or resume from the last checkpoint with another seed"
                )
            stats.add_step(float(norm), self.scheduler.get_last_lr()[0])
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        self.version += 1
        return stats.reduce(self.accelerator)

    def weights(self) -> WeightUpdate:
        """The policy as it is now."""
        return WeightUpdate.of(self._unwrapped(), self.version)

    def save(self, folder: Path) -> None:
        """Writes model and optimizer state into `folder`; only the main rank does anything."""
        if self.accelerator.is_main_process:
            self._unwrapped().save_pretrained(folder)
            save_optimizer(folder, self._unwrapped(), self.optimizer.optimizer, self.scheduler, self.version)

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote, on every rank."""
        self._unwrapped().load_state_dict(load_model(folder).state_dict())
        self.version = load_optimizer(folder, self._unwrapped(), self.optimizer.optimizer, self.scheduler)

    def _accumulate(self, minibatch: Minibatch, stats: UpdateStats, on_policy: bool) -> None:
        """Adds up the gradient of one minibatch; ranks exchange it once, in the last backward pass."""
        runs = micro_batches(minibatch.samples, self.config.max_tokens_per_micro_batch)
        for i, run in enumerate(runs):
            last = i == len(runs) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                batch = PackedBatch.pack(run, self.accelerator.device)
                logprobs, entropy = self._logprobs(self.model, batch)
                out = grpo_loss(
                    logprobs,
                    batch.old_logprobs,
                    batch.advantages,
                    self._reference_logprobs(batch),
                    epsilon=self.config.epsilon,
                    epsilon_high=self.config.epsilon_high,
                    beta=self.config.beta,
                )
                # Ranks average their gradients; times their number makes it the sum the global mean needs.
                scale = self.accelerator.num_processes / minibatch.global_tokens
                self.accelerator.backward(out.loss.sum() * scale)
            stats.add_tokens(out, entropy)
            if on_policy:
                stats.add_mismatch(logprobs.detach() - batch.old_logprobs)

    def _reference_logprobs(self, batch: PackedBatch) -> Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad():
            return self._logprobs(self.reference, batch)[0]

    def _logprobs(self, model: nn.Module, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Log-probability of each completion token `[n]`, and the entropy there `[n]` (without gradient)."""
        out = model(
            input_ids=batch.input_ids.unsqueeze(0),
            cu_seqlens=batch.cu_seqlens,
            logits_to_keep=batch.predictor,
            logprobs_of=batch.target.unsqueeze(0),
            temperature=self.temperature,
        )
        return out.logprobs.squeeze(0), out.entropy.squeeze(0).detach()

    def _unwrapped(self) -> Any:
        return self.accelerator.unwrap_model(self.model)


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only: never for norms, A_log, dt_bias and other vectors."""
    matrices = [p for name, p in model.named_parameters() if p.ndim >= 2 and not name.endswith("A_log")]
    vectors = [p for name, p in model.named_parameters() if p.ndim < 2 or name.endswith("A_log")]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
