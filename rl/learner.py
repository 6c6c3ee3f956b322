"""The learner: scored answers in, new weights out. One process of possibly several; Accelerate joins them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deltarl.kernels.batch_invariant import set_batch_invariant
from deltarl.model.hf_policy import HFPolicy
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.policy import checkpoint_activations, load_policy, uses_every_parameter
from deltarl.model.value import PolicyWithValues
from deltarl.model.weight_ipc import SharedWeights
from deltarl.model.weight_notice import Notice
from deltarl.model.weights import WeightUpdate
from deltarl.rl.batch import Minibatch, PackedBatch, TrainSample, micro_batches
from deltarl.rl.checkpoint import Write
from deltarl.rl.config import LearnerConfig
from deltarl.rl.critic import Critic, own_trunk
from deltarl.rl.lora import LoRAPolicy
from deltarl.rl.loss import token_loss
from deltarl.rl.master_weights import MASTERS, hold_masters, masters
from deltarl.rl.objectives.aggregation import divisor, token_weights
from deltarl.rl.objectives.kl import kl_estimate
from deltarl.rl.objectives.tokens import Tokens
from deltarl.rl.optimizer import lr_schedule, policy_optimizer
from deltarl.rl.optimizer_io import load_optimizer, optimizer_snapshot
from deltarl.rl.ranks import communication, on_cpu
from deltarl.rl.sharding import even, join, load_whole, whole, whole_tensor
from deltarl.rl.transport import Transport
from deltarl.rl.update_stats import UpdateStats
from deltarl.rl.weight_offers import WeightOffers

REFERENCE = "reference"  # its folder in a checkpoint, where it does not stay the model the run started from


class Learner:
    """Holds the policy and its optimizer, and the reference model and the critic if there are any.

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
        if config.batch_invariant:
            set_batch_invariant(True)
        self.skipped = 0  # optimizer steps left out since the policy last took one
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._offers = WeightOffers()
        model: Any = load_policy(model_path)
        ddp = DistributedDataParallelKwargs(find_unused_parameters=not uses_every_parameter(model))
        if config.activation_checkpointing:
            checkpoint_activations(model)
        self._stored_dtypes = model.stored_dtypes if isinstance(model, HFPolicy) else None
        if config.lora is not None:
            model = LoRAPolicy(model, config.lora, model_path)
        else:
            hold_masters(model, keep_rounded=config.sharding == "none")
        self.accelerator = Accelerator(cpu=on_cpu(), kwargs_handlers=[ddp, *communication(config.sharding)])
        self.reference: Any = None
        if config.beta > 0:
            self.reference = self._reference_model(model_path) if config.lora is None else model.base
        betas = (config.adam_beta1, config.adam_beta2)
        module: nn.Module = model
        if config.baseline == "critic" and config.critic.trunk == "shared":
            assert isinstance(model, HybridForCausalLM)  # else refused before the run
            module = PolicyWithValues(model)
        self.model = join(module, self.accelerator, config.sharding)
        optimizer = policy_optimizer(model, config)
        self.optimizer = self.accelerator.prepare(optimizer)
        self.critic: Critic | None = None
        if config.baseline == "critic":
            total_updates = max(1, total_updates - config.critic.warmup_updates * config.num_minibatches)
            head: nn.Module
            if isinstance(module, PolicyWithValues):
                head = module.head
            else:
                head = own_trunk(model_path, self.accelerator.device, config)
            self.critic = Critic(config.critic, self.accelerator, head, betas, config.sharding)
        # Not prepared: an Accelerate scheduler would step once per rank.
        self.scheduler = lr_schedule(config.lr_schedule, optimizer, config.warmup_steps, total_updates)

    def update(self, minibatches: Sequence[Minibatch], beta: float | None = None) -> dict[str, float]:
        """One optimizer step per minibatch.

        Args:
            minibatches: this rank's share of each, at least one sample. A critic with a trunk of its own may pass over
                them again.
            beta: weight of the KL in this update, if it is not `config.beta`.

        Returns:
            Metrics of the whole batch, the same on every rank.

        Raises:
            FloatingPointError: loss or gradient were not finite in `config.max_skipped_steps` optimizer steps in a
                row. The weights are as before these; such a step is left out.
        """
        self.model.train()
        minibatches = list(minibatches)
        stats = UpdateStats()
        beta = self.config.beta if beta is None else beta
        if self.config.correction != "none":
            # The first minibatch meets the weights the iteration starts with anyway; the others must ask them now.
            minibatches = [minibatches[0], *map(self._with_old_logprobs, minibatches[1:])]
        for i, minibatch in enumerate(minibatches):
            if self.config.ptx_weight:
                self._imitate(minibatch, stats)
            loss = self._accumulate(minibatch, stats, beta, on_policy=i == 0)
            if self.critic is not None and self.critic.has_trunk:
                loss += self.critic.accumulate(minibatch, self._runs(minibatch.samples), stats)
            self._step(loss, stats)
        if self.critic is not None:
            for minibatch in minibatches * (self.config.critic.epochs - 1):
                runs = self._runs(minibatch.samples)
                self._step(self.critic.accumulate(minibatch, runs, stats), stats, critic_alone=True)
        self.version += 1
        if self.config.reference_interval and self.version % self.config.reference_interval == 0:
            assert self.reference is not None  # ObjectiveConfig sees to it
            self.reference.load_state_dict(self._unwrapped().state_dict())
        return stats.reduce(self.accelerator)

    def loss(self, minibatch: Minibatch) -> tuple[float, float]:
        """Loss and gradient norm of a minibatch, which change nothing; to be called on every rank."""
        self.model.train()
        loss = self._accumulate(minibatch, UpdateStats(), self.config.beta, on_policy=True)
        norm = self.accelerator.clip_grad_norm_(self._unwrapped().parameters(), float("inf"))
        self._forget_gradient()
        return float(self.accelerator.reduce(loss, "sum")), float(whole_tensor(norm))

    def token_kl(self, samples: Sequence[TrainSample]) -> list[list[float]]:
        """KL of the policy that sampled to the reference model at each token of each answer, in nats."""
        assert self.reference is not None, "without beta there is no reference model"
        kl = []
        for batch, logprobs in self._without_gradient(self.reference, samples):
            sampler = batch.sampler_logprobs
            kl += _by_answer(kl_estimate(self.config.kl_estimator, sampler, logprobs, sampler), batch)
        return kl

    def logprobs(self, samples: Sequence[TrainSample]) -> list[list[float]]:
        """Log-probability of each token of each answer under the policy as it is now."""
        return [
            part
            for batch, logprobs in self._without_gradient(self._unwrapped(), samples)
            for part in _by_answer(logprobs, batch)
        ]

    @torch.no_grad()
    def values(self, samples: Sequence[TrainSample]) -> list[list[float]]:
        """What the critic says before each token of each answer."""
        assert self.critic is not None, "only learner.baseline = 'critic' has values"
        values = []
        for batch in self._packed(samples):
            if self.critic.has_trunk:
                found = self.critic.values(batch)
            else:
                found = self._forward(self._whole(), batch).state_values.squeeze(0)
            values += _by_answer(found, batch)
        return values

    def weights(self) -> WeightUpdate | None:
        """The policy as it is now, in the dtype that samplers have it in.

        To be called on every rank; all but the main one get None.
        """
        main = self.accelerator.is_main_process
        state = whole(self._unwrapped().state_dict(), keep=main)
        return WeightUpdate.of_state(state, self.version, self._stored_dtypes) if main else None

    def listen(self, address: str) -> int | None:
        """Lets samplers meet the main rank at this address for broadcasts of weights; returns its port there."""
        return self._offers.listen(address) if self.accelerator.is_main_process else None

    def offer_weights(self, transport: Transport, copy: bool, oldest: int) -> Notice | SharedWeights | None:
        """As `weights`, but what samplers need to fetch them from here; None of a rank that offers none.

        Args:
            copy: they may fetch them while this learner goes on.
            oldest: version that may still be fetched.
        """
        # Ranks that are not sharded are equal, and each has samplers on its own GPU.
        keep = self.accelerator.is_main_process or (transport == "ipc" and self.config.sharding == "none")
        state = whole(self._unwrapped().state_dict(), keep=keep)
        if not keep:
            return None
        if self._stored_dtypes is not None:
            state = {name: x.to(self._stored_dtypes[name]) for name, x in state.items()}
        if copy and self.config.sharding == "none":  # shards were put together in memory of their own
            learned = {p.data_ptr() for p in self._unwrapped().parameters()}
            state = {name: x.clone() if x.data_ptr() in learned else x for name, x in state.items()}
        notice = self._offers.offer(self.version, state, oldest)
        return self._offers.share(notice) if transport == "ipc" else notice

    def offered_weights(self, version: int) -> WeightUpdate:
        """A version that is offered, of the main rank, for a sampler that cannot fetch it."""
        return self._offers.update(version)

    def save(self, folder: Path, then: Callable[[], Any] | None = None) -> None:
        """Copies model and optimizer state now, and writes them into `folder` while the learner may go on; then calls
        `then`. To be called on every rank; the main one writes.

        Raises:
            Exception: what writing the one before raised. It is waited for.
        """
        self.saved()
        policy, main = self._unwrapped(), self.accelerator.is_main_process
        writes = [self._model_snapshot(policy)]
        writes.append(optimizer_snapshot(policy, self.optimizer.optimizer, self.scheduler, self._counters(), keep=main))
        held = whole(masters(policy), keep=main, copy=True)
        if held:
            writes.append(lambda folder: save_file(held, folder / MASTERS))
        if self.reference is not None and self.config.reference_interval:
            write_reference = self._model_snapshot(self.reference)
            writes.append(lambda folder: write_reference(folder / REFERENCE))
        if isinstance(policy, LoRAPolicy):
            writes.append(policy.adapter_snapshot())
        if self.critic is not None:
            writes.append(self.critic.snapshot())

        def write() -> None:
            try:
                for part in writes:
                    part(folder)
            except SafetensorError as error:
                raise OSError(str(error)) from error  # which it is: nothing else can fail in writing
            if then is not None:
                then()

        if main:
            self._writing = self._writer.submit(write)

    def saved(self) -> None:
        """Waits until what `save` was last called for is written, and raises what writing it raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote, on every rank; with as many ranks as there may be now, sharded or not."""
        policy = self._unwrapped()
        if isinstance(policy, LoRAPolicy):
            policy.load_adapter(folder)
        else:
            state = load_policy(folder).state_dict()
            if masters(policy):
                state |= load_file(folder / MASTERS)
            load_whole(policy, state)
        if self.reference is not None and self.config.reference_interval:
            load_whole(self.reference, load_policy(folder / REFERENCE).state_dict())
        counters = load_optimizer(folder, policy, self.optimizer.optimizer, self.scheduler)
        self.version, self.skipped = counters["version"], counters["skipped"]
        if self.critic is not None:
            self.critic.load(folder)

    def _model_snapshot(self, policy: Any) -> Write:
        state = whole(policy.state_dict(), keep=self.accelerator.is_main_process, copy=True)
        return lambda folder: policy.save_pretrained(folder, state_dict=state)

    def _reference_model(self, path: str) -> Any:
        model = load_policy(path).to(self.accelerator.device).eval()
        model.requires_grad_(False)  # else FSDP wants parameters of one dtype
        return model if self.config.sharding == "none" else join(model, self.accelerator, self.config.sharding)

    def _counters(self) -> dict[str, int]:
        return {"version": self.version, "skipped": self.skipped}

    def _step(self, loss: Tensor, stats: UpdateStats, critic_alone: bool = False) -> None:
        """One step along the gradients there are, and none left; without the step, if they or `loss` are not finite."""
        norm = torch.zeros_like(loss)
        if not critic_alone:
            parameters = self._unwrapped().parameters()
            norm = whole_tensor(self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm))
        critic_norm = torch.zeros_like(norm) if self.critic is None else self.critic.clip_gradient()
        # All ranks must agree. They have the same gradient, but each its own share of the loss.
        if bool(torch.isfinite(self.accelerator.reduce(loss, "sum") + norm + critic_norm)):
            if not critic_alone:
                self.skipped = 0  # a critic that still learns says nothing of a policy that does not
                stats.add_step(float(norm), self.scheduler.get_last_lr()[0])
                if self.critic is None or self.version >= self.config.critic.warmup_updates:
                    self.optimizer.step()
                    self.scheduler.step()
            if self.critic is not None:
                stats.add_critic_step(float(critic_norm))
                self.critic.step()
        else:
            self.skipped += 1
            stats.add_skipped_step(self.scheduler.get_last_lr()[0])
        self._forget_gradient()
        if self.skipped >= self.config.max_skipped_steps:
            raise FloatingPointError(
                f"loss or gradient were not finite in {self.skipped} optimizer steps in a row, the last in update "
                f"{self.version + 1} (loss {float(loss)}, gradient norm {float(norm)}); lower learner.learning_rate, "
                "or resume from an earlier checkpoint with another seed"
            )

    def _forget_gradient(self) -> None:
        self.optimizer.zero_grad()
        if self.critic is not None:
            self.critic.optimizer.zero_grad()

    def _accumulate(self, minibatch: Minibatch, stats: UpdateStats, beta: float, on_policy: bool) -> Tensor:
        """Adds up the gradient of one minibatch; ranks exchange it once, in the last backward pass.

        Args:
            on_policy: the weights are still those the iteration started with.

        Returns:
            This rank's part of the loss.
        """
        minimised = torch.zeros((), device=self.accelerator.device)
        kind, corrects = self.config.aggregation, self.config.correction != "none"
        divided_by = divisor(kind, minibatch.global_tokens, minibatch.global_answers, self.max_tokens)
        # Ranks average their gradients; times their number makes it the sum the global mean needs.
        scale = self.accelerator.num_processes / divided_by
        stats.add_minibatch(divided_by)
        runs = self._runs(minibatch.samples)
        for i, run in enumerate(runs):
            last = i == len(runs) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                batch = PackedBatch.pack(run, self.accelerator.device)
                out = self._forward(self.model, batch)
                logprobs, entropy = out.logprobs.squeeze(0), out.entropy.squeeze(0).detach()
                # Under the weights the iteration started with. Only a correction tells them from the sampler's.
                start = logprobs.detach() if on_policy else batch.old_logprobs
                old = start if corrects else batch.old_logprobs
                tokens = Tokens(logprobs, old, batch.sampler_logprobs, batch.advantages, batch.lengths)
                terms = token_loss(tokens, self.config, self._reference_logprobs(batch), beta)
                weights = token_weights(kind, batch.lengths)
                loss = terms.loss if weights is None else terms.loss * weights
                total = loss.sum() * scale
                if out.state_values is not None and self.critic is not None:
                    total = total + self.critic.loss(out.state_values.squeeze(0), batch, minibatch, stats)
                self.accelerator.backward(total)
            minimised += total.detach()
            stats.add_tokens(terms, loss, entropy)
            if on_policy and out.routed_otherwise is not None and batch.routed_experts is not None:
                stats.add_routing(out.routed_otherwise, batch.routed_experts)
            if on_policy or corrects:
                stats.add_mismatch(start - batch.sampler_logprobs, batch.lengths)
        return minimised

    def _imitate(self, minibatch: Minibatch, stats: UpdateStats) -> None:
        """Adds the gradient of the supervised loss: minus the mean log-probability of the solutions' tokens (PTX of
        InstructGPT, arXiv 2203.02155, Eq. 2). Ranks exchange it with that of the answers, which come after."""
        scale = self.config.ptx_weight * self.accelerator.num_processes / max(1, minibatch.global_solution_tokens)
        total, count = 0.0, 0
        for run in self._runs(minibatch.solutions):
            with self.accelerator.no_sync(self.model):
                logprobs = self._logprobs(self.model, PackedBatch.pack(run, self.accelerator.device))
                self.accelerator.backward(-logprobs.sum() * scale)
            total, count = total - float(logprobs.detach().double().sum()), count + len(logprobs)
        stats.add_imitated(total, count)

    def _reference_logprobs(self, batch: PackedBatch) -> Tensor | None:
        if self.reference is None or self.config.kl_in == "reward":
            return None
        with torch.no_grad():
            return self._logprobs(self.reference, batch)

    def _with_old_logprobs(self, minibatch: Minibatch) -> Minibatch:
        """The minibatch with the current weights' log-probabilities as the old ones."""
        old = self.logprobs(minibatch.samples)
        samples = [replace(s, old_logprobs=o) for s, o in zip(minibatch.samples, old, strict=True)]
        return replace(minibatch, samples=samples)

    @torch.no_grad()
    def _without_gradient(
        self, model: nn.Module, samples: Sequence[TrainSample]
    ) -> Iterator[tuple[PackedBatch, Tensor]]:
        """Micro-batches and the log-probabilities `[n]` of their completion tokens under `model`."""
        for batch in self._packed(samples):
            yield batch, self._logprobs(model, batch)

    def _runs(self, samples: Sequence[TrainSample]) -> list[list[TrainSample]]:
        """Micro-batches; where weights are sharded, as many on every rank, of which the last ones may be empty."""
        runs = micro_batches(samples, self.config.max_tokens_per_micro_batch)
        return runs if self.config.sharding == "none" else even(runs, self.accelerator)

    def _packed(self, samples: Sequence[TrainSample]) -> Iterator[PackedBatch]:
        for run in self._runs(samples):
            yield PackedBatch.pack(run, self.accelerator.device)

    def _logprobs(self, model: nn.Module, batch: PackedBatch) -> Tensor:
        """Log-probability of each completion token `[n]`."""
        return self._forward(model, batch).logprobs.squeeze(0)

    def _forward(self, model: nn.Module, batch: PackedBatch) -> Any:
        """Log-probability and entropy of each completion token `[1, n]`, and its value, if the model has a head.

        The policy replays the routing there is; the reference model, which never sampled, does its own.
        """
        replayed = None if model is self.reference else batch.routed_experts
        return model(
            input_ids=batch.input_ids.unsqueeze(0),
            cu_seqlens=batch.cu_seqlens,
            logits_to_keep=batch.predictor,
            logprobs_of=batch.target.unsqueeze(0),
            temperature=self.temperature,
            **({} if replayed is None else {"routed_experts": replayed}),
        )

    def _whole(self) -> Any:
        """The policy, with its value head if there is one on it."""
        return self.accelerator.unwrap_model(self.model)

    def _unwrapped(self) -> Any:
        """The policy."""
        model = self._whole()
        return model.policy if isinstance(model, PolicyWithValues) else model


def _by_answer(x: Tensor, batch: PackedBatch) -> list[list[float]]:
    """`[n]` of the tokens of a batch, cut into its answers."""
    return [part.tolist() for part in x.split(batch.lengths.tolist())]
