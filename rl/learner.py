"""The learner: scored answers in, new weights out. One process of possibly several; Accelerate joins them."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from transformers import get_scheduler

from deltarl.model.policy import load_policy, uses_every_parameter
from deltarl.model.weights import WeightUpdate
from deltarl.rl.batch import Minibatch, PackedBatch, TrainSample, micro_batches
from deltarl.rl.config import LearnerConfig
from deltarl.rl.loss import token_loss
from deltarl.rl.objectives.aggregation import divisor, token_weights
from deltarl.rl.objectives.kl import kl_estimate
from deltarl.rl.objectives.tokens import Tokens, answer_sums
from deltarl.rl.optimizer_io import load_optimizer, save_optimizer
from deltarl.rl.ranks import on_cpu
from deltarl.rl.update_stats import UpdateStats

REFERENCE = "reference"  # its folder in a checkpoint, where it does not stay the model the run started from


class Learner:
    """Holds the policy and its optimizer, and the reference model if there is one.

    The loss of an update is normalised by counts of the whole global minibatch, so that the gradient is the same for
    any micro-batch size and any number of ranks.
    """

    def __init__(
        self,
        config: LearnerConfig,
        model_path: str,
        total_updates: int,
        temperature: float,
        max_tokens: int | None = None,
    ):
        """
        Args:
            model_path: checkpoint folder of the policy; also the reference model if `config.beta` is above 0.
            total_updates: optimizer steps of the whole run, for the learning-rate schedule.
            temperature: at which answers are sampled; log-probabilities are taken at it.
            max_tokens: longest possible answer; needed for `config.aggregation` "constant".
        """
        if config.aggregation == "constant" and max_tokens is None:
            raise ValueError("learner.aggregation = 'constant' divides by the longest possible answer: give max_tokens")
        self.max_tokens = max_tokens or 0
        self.config, self.temperature, self.version = config, temperature, 0
        model = load_policy(model_path)
        ddp = DistributedDataParallelKwargs(find_unused_parameters=not uses_every_parameter(model))
        self.accelerator = Accelerator(cpu=on_cpu(), kwargs_handlers=[ddp])
        self.reference = load_policy(model_path).to(self.accelerator.device).eval() if config.beta > 0 else None
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

    def update(self, minibatches: Sequence[Minibatch], beta: float | None = None) -> dict[str, float]:
        """One optimizer step per minibatch.

        Args:
            minibatches: this rank's share of each, at least one sample.
            beta: weight of the KL in this update, if it is not `config.beta`.

        Returns:
            Metrics of the whole batch, the same on every rank.

        Raises:
            FloatingPointError: the gradient is not finite; the weights are as before that step.
        """
        self.model.train()
        stats = UpdateStats()
        beta = self.config.beta if beta is None else beta
        if self.config.correction != "none":
            # The first minibatch meets the weights the iteration starts with anyway; the others must ask them now.
            minibatches = [minibatches[0], *map(self._with_old_logprobs, minibatches[1:])]
        for i, minibatch in enumerate(minibatches):
            if self.config.ptx_weight:
                self._imitate(minibatch, stats)
            self._accumulate(minibatch, stats, beta, on_policy=i == 0)
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
        if self.config.reference_interval and self.version % self.config.reference_interval == 0:
            assert self.reference is not None  # ObjectiveConfig sees to it
            self.reference.load_state_dict(self._unwrapped().state_dict())
        return stats.reduce(self.accelerator)

    def answer_kl(self, samples: Sequence[TrainSample]) -> list[float]:
        """KL of the policy that sampled to the reference model, summed over the tokens of each answer, in nats."""
        assert self.reference is not None, "without beta there is no reference model"
        kl = []
        for batch, logprobs in self._without_gradient(self.reference, samples):
            sampler = batch.sampler_logprobs
            kl += answer_sums(kl_estimate(self.config.kl_estimator, sampler, logprobs, sampler), batch.lengths).tolist()
        return kl

    def weights(self) -> WeightUpdate:
        """The policy as it is now."""
        return WeightUpdate.of(self._unwrapped(), self.version)

    def save(self, folder: Path) -> None:
        """Writes model and optimizer state into `folder`; only the main rank does anything."""
        if self.accelerator.is_main_process:
            self._unwrapped().save_pretrained(folder)
            if self.reference is not None and self.config.reference_interval:
                self.reference.save_pretrained(folder / REFERENCE)
            save_optimizer(folder, self._unwrapped(), self.optimizer.optimizer, self.scheduler, self.version)

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote, on every rank."""
        self._unwrapped().load_state_dict(load_policy(folder).state_dict())
        if self.reference is not None and self.config.reference_interval:
            self.reference.load_state_dict(load_policy(folder / REFERENCE).state_dict())
        self.version = load_optimizer(folder, self._unwrapped(), self.optimizer.optimizer, self.scheduler)

    def _accumulate(self, minibatch: Minibatch, stats: UpdateStats, beta: float, on_policy: bool) -> None:
        """Adds up the gradient of one minibatch; ranks exchange it once, in the last backward pass.

        Args:
            on_policy: the weights are still those the iteration started with.
        """
        kind, corrects = self.config.aggregation, self.config.correction != "none"
        divided_by = divisor(kind, minibatch.global_tokens, minibatch.global_answers, self.max_tokens)
        # Ranks average their gradients; times their number makes it the sum the global mean needs.
        scale = self.accelerator.num_processes / divided_by
        stats.add_minibatch(divided_by)
        runs = micro_batches(minibatch.samples, self.config.max_tokens_per_micro_batch)
        for i, run in enumerate(runs):
            last = i == len(runs) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                batch = PackedBatch.pack(run, self.accelerator.device)
                logprobs, entropy = self._logprobs(self.model, batch)
                # Under the weights the iteration started with. Only a correction tells them from the sampler's.
                start = logprobs.detach() if on_policy else batch.old_logprobs
                old = start if corrects else batch.old_logprobs
                tokens = Tokens(logprobs, old, batch.sampler_logprobs, batch.advantages, batch.lengths)
                out = token_loss(tokens, self.config, self._reference_logprobs(batch), beta)
                weights = token_weights(kind, batch.lengths)
                loss = out.loss if weights is None else out.loss * weights
                self.accelerator.backward(loss.sum() * scale)
            stats.add_tokens(out, loss, entropy)
            if on_policy or corrects:
                stats.add_mismatch(start - batch.sampler_logprobs, batch.lengths)

    def _imitate(self, minibatch: Minibatch, stats: UpdateStats) -> None:
        """Adds the gradient of the supervised loss: minus the mean log-probability of the solutions' tokens (PTX of
        InstructGPT, arXiv 2203.02155, Eq. 2). Ranks exchange it with that of the answers, which come after."""
        scale = self.config.ptx_weight * self.accelerator.num_processes / max(1, minibatch.global_solution_tokens)
        total, count = 0.0, 0
        for run in micro_batches(minibatch.solutions, self.config.max_tokens_per_micro_batch):
            with self.accelerator.no_sync(self.model):
                logprobs, _ = self._logprobs(self.model, PackedBatch.pack(run, self.accelerator.device))
                self.accelerator.backward(-logprobs.sum() * scale)
            total, count = total - float(logprobs.detach().double().sum()), count + len(logprobs)
        stats.add_imitated(total, count)

    def _reference_logprobs(self, batch: PackedBatch) -> Tensor | None:
        if self.reference is None or self.config.kl_in == "reward":
            return None
        with torch.no_grad():
            return self._logprobs(self.reference, batch)[0]

    def _with_old_logprobs(self, minibatch: Minibatch) -> Minibatch:
        """The minibatch with the current weights' log-probabilities as the old ones."""
        old = [
            part.tolist()
            for batch, logprobs in self._without_gradient(self._unwrapped(), minibatch.samples)
            for part in logprobs.split(batch.lengths.tolist())
        ]
        samples = [replace(s, old_logprobs=o) for s, o in zip(minibatch.samples, old, strict=True)]
        return replace(minibatch, samples=samples)

    @torch.no_grad()
    def _without_gradient(
        self, model: nn.Module, samples: Sequence[TrainSample]
    ) -> Iterator[tuple[PackedBatch, Tensor]]:
        """Micro-batches and the log-probabilities `[n]` of their completion tokens under `model`."""
        for run in micro_batches(samples, self.config.max_tokens_per_micro_batch):
            batch = PackedBatch.pack(run, self.accelerator.device)
            yield batch, self._logprobs(model, batch)[0]

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
