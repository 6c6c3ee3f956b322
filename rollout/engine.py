"""The sampler: prompts in, trajectories out, decoding from the recurrent state in a continuously filled batch."""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from deltarl.kernels.precision import MIN_ROWS
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.packing import Packing
from deltarl.model.weights import WeightUpdate
from deltarl.rollout.params import SamplingParams, Trajectory
from deltarl.rollout.slots import Sample, Slots


class Engine:
    """Continuous batching over a fixed number of slots.

    A prompt is prefilled once, into a small cache of prompts; each of its samples starts from a copy of that state as
    soon as a slot is free. A slot whose sample has finished is given to the next one; nobody waits for a long answer.
    """

    def __init__(
        self,
        model: HybridForCausalLM,
        *,
        max_num_seqs: int = 256,
        max_model_len: int | None = None,
        max_prefill_tokens: int = 4096,
    ):
        """
        Args:
            model: the policy; put in eval mode.
            max_num_seqs: samples decoded at once; memory is `model.new_cache(max_num_seqs, max_model_len)`.
            max_model_len: most tokens of prompt and answer together, the config's limit if None.
            max_prefill_tokens: prompts are prefilled packed, this many tokens at a time (at least one prompt).
        """
        limit = model.config.max_position_embeddings
        self.model = model.eval()
        self.max_model_len = limit if max_model_len is None else max_model_len
        if not 2 <= self.max_model_len <= limit:
            raise ValueError(f"max_model_len must be 2..{limit} (the model's limit), got {max_model_len}")
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1, got {max_num_seqs}")
        self.max_num_seqs = max_num_seqs
        self.max_prefill_tokens = max_prefill_tokens
        self.weight_version = 0

    def load_weights(self, update: WeightUpdate) -> None:
        """Takes over published weights, verified by checksum; between calls of `generate`, so no state is stale."""
        update.load_into(self.model)
        self.weight_version = update.version

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[list[Trajectory]]:
        """Samples `params.n` answers to each prompt of token ids; results are in the order of the prompts.

        Raises:
            ValueError: an empty prompt, one that leaves no room for an answer, or token ids outside the vocabulary.
            FloatingPointError: the model produced logits that are not finite.
        """
        every = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(every) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(every)} SamplingParams")
        for i, prompt in enumerate(prompts):
            self._check(i, prompt)
        return _Run(self, prompts, every).results()

    def _check(self, i: int, prompt: Sequence[int]) -> None:
        vocab = self.model.config.vocab_size
        if not prompt:
            raise ValueError(f"prompt {i} is empty")
        if len(prompt) >= self.max_model_len:
            raise ValueError(
                f"prompt {i} has {len(prompt)} tokens and max_model_len is {self.max_model_len}: no room for an "
                "answer; shorten the prompt or raise max_model_len"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            raise ValueError(f"prompt {i} has token ids outside the vocabulary 0..{vocab - 1}")


class _Run:
    """One call of `Engine.generate`."""

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]], params: list[SamplingParams]):
        self.engine, self.model = engine, engine.model
        self.prompts = [list(p) for p in prompts]
        self.params = params
        self.out: list[list[Trajectory | None]] = [[None] * p.n for p in params]
        self.waiting = deque(range(len(prompts)))
        self.ready: deque[Sample] = deque()  # samples of prefilled prompts, not yet in a slot
        lengths = [
            min(len(prompt) + p.max_tokens, engine.max_model_len) - 1
            for prompt, p in zip(self.prompts, params, strict=True)
        ]
        total = sum(p.n for p in params)
        slots = max(MIN_ROWS, min(engine.max_num_seqs, total))
        self.slots = Slots(self.model.new_cache(slots, max([1, *lengths])), slots, engine.max_model_len)

    @torch.inference_mode()
    def results(self) -> list[list[Trajectory]]:
        while self.waiting or self.ready or self.slots.active:
            self._admit()
            self._collect()
            if self.slots.active:
                self.slots.draw(self._decode())
                self._collect()
        return [[t for t in group if t is not None] for group in self.out]

    def _admit(self) -> None:
        while self.slots.free and (self.ready or self.waiting):
            if not self.ready:
                self._prefill()
            batch = [self.ready.popleft() for _ in range(min(self.slots.free, len(self.ready)))]
            rows = torch.tensor([self.prompt_row[s.prompt] for s in batch], device=self.slots.last_token.device)
            self.slots.start(batch, self.prompt_cache, rows, self.prompt_logits[rows])

    def _prefill(self) -> None:
        """Prefills the next prompts, enough to fill the free slots within the token budget."""
        chosen: list[int] = []
        tokens = samples = 0
        while self.waiting and samples < self.slots.free:
            tokens += len(self.prompts[self.waiting[0]])
            if chosen and tokens > self.engine.max_prefill_tokens:
                break
            chosen.append(self.waiting.popleft())
            samples += self.params[chosen[-1]].n
        prompts = [self.prompts[i] for i in chosen]
        if sum(map(len, prompts)) < MIN_ROWS:
            prompts.append([0] * MIN_ROWS)  # one that nobody asked for, so that the others do not notice being few
        device = self.slots.last_token.device
        self.prompt_cache = self.model.new_cache(len(prompts), max(map(len, prompts)))
        self.prompt_row = {prompt: row for row, prompt in enumerate(chosen)}
        ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)
        packing = Packing.from_lengths([len(p) for p in prompts], device)
        rows = torch.arange(len(prompts), device=device)
        self.prompt_logits = self._finite(self.model.prefill(ids, packing, self.prompt_cache, rows))
        for i in chosen:
            self.ready += [Sample(i, k, self.prompts[i], self.params[i]) for k in range(self.params[i].n)]

    def _decode(self) -> Tensor:
        active = self.slots.active
        rows = max(active, MIN_ROWS)
        cache = self.slots.cache.view(rows)
        cache.length[active:] = 0  # idle rows start over every step, lest they run past the end of the cache
        return self._finite(self.model.decode(self.slots.last_token[:rows], cache)[:active])

    def _collect(self) -> None:
        for sample, trajectory in self.slots.retire(self.engine.weight_version):
            self.out[sample.prompt][sample.index] = trajectory

    def _finite(self, logits: Tensor) -> Tensor:
        if not torch.isfinite(logits).all():
            raise FloatingPointError(
                f"the model's logits are not finite under weights version {self.engine.weight_version}; "
                "the learner has diverged (lower the learning rate) or the checkpoint is damaged"
            )
        return logits
