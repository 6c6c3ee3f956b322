"""The sampler: requests in, answers out, decoding from the recurrent state in a continuously filled batch."""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.weights import WeightUpdate
from deltarl.rollout.admission import Admission
from deltarl.rollout.model_runner import ModelRunner
from deltarl.rollout.outputs import RequestOutput
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.scheduler import Scheduler
from deltarl.rollout.sequence import Request
from deltarl.rollout.snapshot import Snapshot
from deltarl.rollout.stats import EngineStats

InFlight = Literal["keep", "replay"]


class Engine:
    """Continuous batching over rows of recurrent state and pages of latents. One thread may call it.

    A prompt is prefilled once, into a row of its own; each of its samples starts from a copy of that state as soon as a
    row is free. A row whose sample has finished is given to the next one; nobody waits for a long answer. Where pages
    run out, the samples that came last are taken out with their state, and go on from it later.
    """

    def __init__(
        self,
        model: HybridForCausalLM,
        *,
        max_num_seqs: int = 256,
        max_model_len: int | None = None,
        max_prefill_tokens: int = 4096,
        num_pages: int | None = None,
        prefix_cache_bytes: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
        in_flight: InFlight = "keep",
        record_routing: bool = False,
    ):
        """
        Args:
            model: the policy; put in eval mode.
            max_num_seqs: samples decoded at once.
            max_model_len: most tokens of prompt and answer together, the config's limit if None.
            max_prefill_tokens: prompts are prefilled packed, this many tokens a step; longer ones in pieces.
            num_pages: latent pages of `PAGE_SIZE` tokens for all sequences together; enough for any if None.
            prefix_cache_bytes: memory for the states of beginnings that prompts share.
            tokenizer: gives outputs a text; needed for stop strings.
            in_flight: what new weights mean for samples under way: "keep" the state that the old weights computed, or
                "replay" their tokens. Either way each token carries the version that sampled it.
            record_routing: of a mixture of experts, say which experts the tokens of each answer went to.
        """
        limit = model.config.max_position_embeddings
        self.model = model.eval()
        self.max_model_len = limit if max_model_len is None else max_model_len
        if not 2 <= self.max_model_len <= limit:
            raise ValueError(f"max_model_len must be 2..{limit} (the model's limit), got {max_model_len}")
        if in_flight not in ("keep", "replay"):
            raise ValueError(f'in_flight must be "keep" or "replay", got {in_flight!r}')
        self.tokenizer = tokenizer
        self.in_flight = in_flight
        self.weight_version = 0

        self._runner = ModelRunner(
            model, max_num_seqs, self.max_model_len, num_pages, prefix_cache_bytes, record_routing
        )
        self._scheduler = Scheduler(self._runner, max_num_seqs, max_prefill_tokens)
        self._admission = Admission(
            model.config.vocab_size, self.max_model_len, self._runner.pages.total, tokenizer is not None
        )
        self._requests: dict[str, Request] = {}
        self._finished: list[Request] = []
        self._orders = itertools.count()
        self._generated_tokens = 0

    # ------------------------------------------------------------------------------------------------- requests

    def add_request(self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Queues a request.

        Raises:
            ValueError: an id in use; an empty prompt, one that leaves no room for an answer, one whose sequences can
                never fit the pages, or token ids outside the vocabulary; stop strings without a tokenizer.
        """
        prompt = [int(token) for token in prompt_token_ids]
        self._check(request_id, prompt, params)
        request = Request(request_id, next(self._orders), prompt, params)
        for i in range(params.n):
            request.add_sample(i, self.tokenizer)
        self._queue(request)

    @torch.inference_mode()
    def abort_request(self, request_id: str) -> None:
        """Ends a request; the next `step` returns what there is of it. Unknown and finished ids are ignored."""
        if request_id not in self._requests:
            return
        request = self._requests[request_id]
        self._scheduler.remove(request, keep_state=False)
        for sample in request.samples:
            sample.finish_reason = sample.finish_reason or "abort"
        self._finish(request)

    def has_unfinished_requests(self) -> bool:
        return bool(self._requests or self._finished)

    def progress(self, request_id: str) -> RequestOutput:
        """What there is so far of a request that `step` has not returned yet.

        Raises:
            KeyError: there is no such request.
        """
        request = self._requests[request_id]
        self._runner.rows.fetch([i for i, s in enumerate(self._runner.rows.samples) if s.request is request])
        return self._output(request)

    @torch.inference_mode()
    def pause(self, request_id: str) -> list[Snapshot]:
        """Takes the unfinished samples of a request out of the engine, which forgets them; `resume` goes on.

        Samples of the request that have finished are in the output that the next `step` returns, if there are any.
        """
        request = self._requests[request_id]
        self._scheduler.remove(request, keep_state=True)
        snapshots = [
            Snapshot(request.prompt, request.params, s.index, s.answer, s.prefilled, self.weight_version, s.state)
            for s in request.samples
            if s.finish_reason is None
        ]
        request.samples = [s for s in request.samples if s.finish_reason is not None]
        if request.samples:
            self._finish(request)
        else:
            del self._requests[request_id]
        return snapshots

    def resume(self, request_id: str, snapshots: Sequence[Snapshot]) -> None:
        """Queues samples that some engine paused, as one request.

        Raises:
            ValueError: as for `add_request`; a state from other weights than this engine has, but for one that an
                engine of the same version kept, where this one keeps them too; a state without routed experts, which
                this engine records. `without_state` makes it compute the tokens again.
        """
        first = snapshots[0]
        self._check(request_id, first.prompt, first.params)
        for s in snapshots:
            if (s.prompt, s.params) != (first.prompt, first.params):
                raise ValueError("the snapshots of a request must have the same prompt and params")
            self._check_state(s)
        request = Request(request_id, next(self._orders), first.prompt, first.params)
        for s in snapshots:
            request.add_sample(s.index, self.tokenizer, s.answer.copy(), s.prefilled, s.state)
        self._queue(request)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams],
        before_step: Callable[[], None] | None = None,
    ) -> list[RequestOutput]:
        """Samples `params.n` answers to each prompt of token ids; results are in the order of the prompts.

        Args:
            before_step: called before each `step`; may load weights. What it raises ends the call.

        Raises:
            ValueError: see `add_request`; then none of the prompts is sampled.
            FloatingPointError: the model produced logits that are not finite.
            RuntimeError: the engine has other requests.
        """
        every = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(every) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(every)} SamplingParams")
        if self.has_unfinished_requests():
            raise RuntimeError("the engine has other requests: finish or abort them before `generate`")
        ids = [f"prompt-{i}" for i in range(len(prompts))]
        try:
            for request_id, prompt, p in zip(ids, prompts, every, strict=True):
                self.add_request(request_id, prompt, p)
            outputs = {}
            while self.has_unfinished_requests():
                if before_step is not None:
                    before_step()
                for output in self.step():
                    outputs[output.request_id] = output
                    self._raise_if_broken(output)
        except BaseException:
            for request_id in ids:
                self.abort_request(request_id)
            self._finished.clear()
            raise
        return [outputs[request_id] for request_id in ids]

    # ---------------------------------------------------------------------------------------------------- steps

    @torch.inference_mode()
    def step(self) -> list[RequestOutput]:
        """Decodes one token of every running sample and lets waiting ones in; returns the requests that finished."""
        if self._requests:
            self._scheduler.advance()
            if self._runner.rows.active:
                self._draw()
        return self._take_finished()

    def run(self, token_budget: int) -> list[RequestOutput]:
        """Steps until about so many tokens are sampled, or nothing is left to do; returns the requests that finished.

        What has not finished goes on in the next call, also under other weights: partial rollouts.
        """
        finished, end = self._take_finished(), self._generated_tokens + token_budget
        while self._requests and self._generated_tokens < end:
            finished += self.step()
        return finished

    def load_weights(self, update: WeightUpdate) -> None:
        """Takes over published weights, verified by checksum, between two steps; see `in_flight`.

        Prompts that were prefilled and not yet sampled from are prefilled again, and kept beginnings are dropped.
        """
        update.load_into(self.model)
        self.weight_version = update.version
        with torch.inference_mode():
            self._scheduler.forget_weights(replay=self.in_flight == "replay")

    def close(self) -> None:
        """Nothing is held that goes away with the engine itself. As every `RolloutBackend` has it."""

    def stats(self) -> EngineStats:
        runner = self._runner
        return EngineStats(
            running=runner.rows.active,
            waiting=self._scheduler.num_waiting,
            free_pages=runner.pages.free,
            total_pages=runner.pages.total,
            bytes_per_page=runner.cache.bytes_per_page(),
            recurrent_bytes_per_row=runner.cache.bytes_per_sequence(0),
            prefix_cache_bytes=runner.prefixes.nbytes,
            prefix_cache_hits=runner.prefixes.hits,
            prompt_tokens=runner.prompt_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=self._scheduler.preemptions,
        )

    # ---------------------------------------------------------------------------------------------- bookkeeping

    def _draw(self) -> None:
        """Draws a token for every row, and takes out the rows whose answer is complete."""
        rows = self._runner.rows
        self._generated_tokens += rows.active
        done = rows.draw(self.weight_version)
        requests = dict.fromkeys(rows.samples[row].request for row in done)
        self._runner.leave(done, keep_state=False)
        for request in requests:
            if request.finished:
                self._finish(request)

    def _queue(self, request: Request) -> None:
        self._requests[request.id] = request
        self._scheduler.add(request)

    def _take_finished(self) -> list[RequestOutput]:
        done, self._finished = self._finished, []
        return [self._output(request) for request in done]

    def _finish(self, request: Request) -> None:
        del self._requests[request.id]
        self._finished.append(request)

    def _output(self, request: Request) -> RequestOutput:
        return RequestOutput(request.id, request.prompt, [s.output(self.tokenizer) for s in request.samples])

    def _raise_if_broken(self, output: RequestOutput) -> None:
        if any(o.finish_reason == "error" for o in output.outputs):
            raise FloatingPointError(
                f"the model's logits are not finite under weights version {self.weight_version}; "
                "the learner has diverged (lower the learning rate) or the checkpoint is damaged"
            )

    def _check(self, request_id: str, prompt: list[int], params: SamplingParams) -> None:
        if request_id in self._requests:
            raise ValueError(f"there is a request {request_id!r} already")
        self._admission.check(request_id, prompt, params)

    def _check_state(self, snapshot: Snapshot) -> None:
        versions = snapshot.state_versions
        kept = self.in_flight == "keep" and snapshot.weight_version == self.weight_version
        if snapshot.state is not None and versions != (self.weight_version,) and not kept:
            raise ValueError(
                f"the state comes from weights version {' and '.join(map(str, versions))}, this engine has "
                f"{self.weight_version}: load the same version, or take `snapshot.without_state()` to compute the "
                "tokens again"
            )
        recorded = snapshot.state is None or snapshot.state.routed_experts is not None
        if self._runner.cache.routed_experts is not None and not recorded:
            raise ValueError(
                "the state comes from an engine that did not record routed experts, as this one does: take "
                "`snapshot.without_state()` to compute the tokens again"
            )
