"""The sampler: requests in, answers out, decoding from the recurrent state in a continuously filled batch."""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from deltarl.kernels.chunk import CHUNK_SIZE
from deltarl.kernels.precision import MIN_ROWS
from deltarl.model.cache import PAGE_SIZE, RowState
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.packing import Packing
from deltarl.model.weights import WeightUpdate
from deltarl.rollout.outputs import CompletionOutput, RequestOutput
from deltarl.rollout.pages import Pages, pages_of
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.prefix_cache import PrefixCache
from deltarl.rollout.rows import Rows
from deltarl.rollout.sampling_rows import check_params
from deltarl.rollout.sequence import Answer, Prompt, Request, Sample
from deltarl.rollout.snapshot import Snapshot
from deltarl.rollout.stop_strings import StopStrings

PROMPT_ROWS = 32  # prompts that can be prefilled before all of their samples have found a row
InFlight = Literal["keep", "replay"]


@dataclass(frozen=True)
class EngineStats:
    """Where an engine stands. The last four count from its beginning."""

    running: int
    waiting: int
    free_pages: int
    total_pages: int
    bytes_per_page: int
    recurrent_bytes_per_row: int
    prefix_cache_bytes: int
    prefix_cache_hits: int
    prompt_tokens: int
    generated_tokens: int
    preemptions: int


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
        """
        limit = model.config.max_position_embeddings
        self.model = model.eval()
        self.max_model_len = limit if max_model_len is None else max_model_len
        if not 2 <= self.max_model_len <= limit:
            raise ValueError(f"max_model_len must be 2..{limit} (the model's limit), got {max_model_len}")
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1, got {max_num_seqs}")
        if max_prefill_tokens < CHUNK_SIZE:
            raise ValueError(f"max_prefill_tokens must be at least {CHUNK_SIZE}, got {max_prefill_tokens}")
        if in_flight not in ("keep", "replay"):
            raise ValueError(f'in_flight must be "keep" or "replay", got {in_flight!r}')
        self.max_num_seqs = max_num_seqs
        self.max_prefill_tokens = max_prefill_tokens
        self.tokenizer = tokenizer
        self.in_flight = in_flight
        self.weight_version = 0

        decoded, prompts = max(MIN_ROWS, max_num_seqs), min(PROMPT_ROWS, max_num_seqs)
        rows = decoded + prompts + 1  # the last stands for a prompt that nobody asked for, see `_prefill`
        if num_pages is None:
            num_pages = (rows - 1) * int(pages_of(self.max_model_len))
        if num_pages < 1:
            raise ValueError(f"num_pages must be at least 1, got {num_pages}")
        self._cache = model.new_cache(rows, self.max_model_len, num_pages + 1)
        self._pages = Pages(self._cache.block_table, num_pages + 1)
        self._rows = Rows(decoded, self.max_model_len, model.config.vocab_size, self._cache.length.device)
        self._prompt_rows = list(range(decoded, decoded + prompts))
        self._prompt_logits = torch.zeros(prompts, model.config.vocab_size, device=self._cache.length.device)
        self._prefixes = PrefixCache(prefix_cache_bytes)

        self._requests: dict[str, Request] = {}
        self._waiting: deque[Prompt] = deque()  # not, or not wholly, prefilled; in the order of their requests
        self._ready: deque[Prompt] = deque()  # prefilled, with samples still to start
        self._paused: deque[Sample] = deque()  # with the state that they go on from
        self._finished: list[Request] = []
        self._orders = itertools.count()
        self._prompt_tokens = self._generated_tokens = self._preemptions = 0

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
        request.samples = [self._sample(request, i) for i in range(params.n)]
        self._requests[request_id] = request
        self._waiting.append(Prompt(request, prompt, list(request.samples)))

    @torch.inference_mode()
    def abort_request(self, request_id: str) -> None:
        """Ends a request; the next `step` returns what there is of it. Unknown and finished ids are ignored."""
        if request_id not in self._requests:
            return
        request = self._requests[request_id]
        self._take_out(request, keep_state=False)
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
        return self._output(self._requests[request_id])

    @torch.inference_mode()
    def pause(self, request_id: str) -> list[Snapshot]:
        """Takes the unfinished samples of a request out of the engine, which forgets them; `resume` goes on.

        Samples of the request that have finished are in the output that the next `step` returns, if there are any.
        """
        request = self._requests[request_id]
        self._take_out(request, keep_state=True)
        snapshots = [
            Snapshot(request.prompt, request.params, s.index, s.answer, self.weight_version, s.state)
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
            ValueError: as for `add_request`; a state from other weights than this engine has (`without_state` makes
                it compute the tokens again).
        """
        first = snapshots[0]
        self._check(request_id, first.prompt, first.params)
        for s in snapshots:
            if (s.prompt, s.params) != (first.prompt, first.params):
                raise ValueError("the snapshots of a request must have the same prompt and params")
            if s.state is not None and s.weight_version != self.weight_version:
                raise ValueError(
                    f"the state comes from weights version {s.weight_version}, this engine has {self.weight_version}: "
                    "load the same version, or take `snapshot.without_state()` to compute the tokens again"
                )
        request = Request(request_id, next(self._orders), first.prompt, first.params)
        self._requests[request_id] = request
        fresh = []
        for s in snapshots:
            sample = self._sample(request, s.index, s.answer, s.state)
            request.samples.append(sample)
            if s.state is not None:
                self._paused.append(sample)
            elif s.answer.token_ids:
                self._waiting.append(_replay(sample))
            else:
                fresh.append(sample)
        if fresh:
            self._waiting.append(Prompt(request, request.prompt, fresh))

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
    ) -> list[RequestOutput]:
        """Samples `params.n` answers to each prompt of token ids; results are in the order of the prompts.

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
            self._go_on_with_paused()
            logits = self._decode()
            started = self._start()
            if self._rows.active:
                self._advance(torch.cat([logits, *started]))
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
        self._prefixes.clear()
        for prompt in [*self._ready, *self._waiting]:
            self._unprefill(prompt)
        self._requeue(list(self._ready))
        if self.in_flight == "replay":
            samples = [*self._rows.samples, *self._paused]
            with torch.inference_mode():
                self._leave(list(range(self._rows.active)), keep_state=False)
            self._paused.clear()
            self._requeue([_replay(s) for s in samples])

    def close(self) -> None:
        """Nothing is held that goes away with the engine itself. As every `RolloutBackend` has it."""

    def stats(self) -> EngineStats:
        waiting = sum(len(p.samples) for p in (*self._waiting, *self._ready)) + len(self._paused)
        return EngineStats(
            running=self._rows.active,
            waiting=waiting,
            free_pages=self._pages.free,
            total_pages=self._pages.total,
            bytes_per_page=self._cache.bytes_per_page(),
            recurrent_bytes_per_row=self._cache.bytes_per_sequence(0),
            prefix_cache_bytes=self._prefixes.nbytes,
            prefix_cache_hits=self._prefixes.hits,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=self._preemptions,
        )

    # ------------------------------------------------------------------------------------------------ admission

    def _go_on_with_paused(self) -> None:
        while self._paused and self._rows.active < self.max_num_seqs:
            sample = self._paused[0]
            assert sample.state is not None
            row, length = self._rows.active, sample.state.length
            while self._pages.wanted(row, length + 1) > self._pages.free - self._headroom():
                if row or not self._displace():
                    return
            self._paused.popleft()
            self._pages.grow_row(row, length + 1)
            self._pages.length[row] = length
            self._pages.push()
            self._cache.import_row(row, sample.state)
            sample.state = None
            self._rows.start([sample], [self._limit(sample.request)])

    def _start(self) -> list[Tensor]:
        """Starts samples in free rows; returns the logits `[n, vocab]` that their first tokens are drawn from."""
        logits = []
        prefilled = False
        while self._rows.active < self.max_num_seqs and not self._paused:
            if self._ready:
                batch = self._fork()
                if batch is not None:
                    logits.append(batch)
                elif self._rows.active or not self._displace(keep=self._ready[0]):
                    break
            elif self._waiting and not prefilled:
                prefilled = True  # once a step: those who decode do not wait for long prompts
                if not self._prefill() and (self._rows.active or not self._displace(keep=self._waiting[0])):
                    break
            else:
                break
        return logits

    def _fork(self) -> Tensor | None:
        """Gives the samples of ready prompts rows, as far as rows and pages go; None if not even one."""
        samples: list[Sample] = []
        sources, targets, copies = [], [], []
        begin, room = self._rows.active, self.max_num_seqs - self._rows.active
        while self._ready and len(samples) < room:
            prompt = self._ready[0]
            assert prompt.row is not None
            if self._pages.free - self._headroom() < 1:
                break
            target = begin + len(samples)
            sample = prompt.samples.pop(0)
            if pair := self._pages.fork(prompt.row, target):
                copies.append(pair)
            sources.append(prompt.row)
            targets.append(target)
            samples.append(sample)
            if not prompt.samples:
                self._ready.popleft()
                # Its pages and its row are read below, before anyone else can get them.
                self._pages.release(prompt.row)
                self._prompt_rows.append(prompt.row)
                prompt.row = None
        if not samples:
            return None
        device = self._cache.length.device
        source = torch.tensor(sources, device=device)
        self._cache.copy_rows(source, torch.tensor(targets, device=device))
        if copies:
            pages = torch.tensor(copies, device=device)
            self._cache.copy_pages(pages[:, 0], pages[:, 1])
        self._rows.start(samples, [self._limit(s.request) for s in samples])
        return self._prompt_logits[source - self._first_prompt_row]

    def _prefill(self) -> bool:
        """Prefills prompts, or pieces of them, within the token budget; False if there was no room for any."""
        batch: list[tuple[Prompt, int]] = []
        budget, samples = self.max_prefill_tokens, self.max_num_seqs - self._rows.active
        while self._waiting and budget >= CHUNK_SIZE and samples > 0:
            prompt = self._waiting[0]
            if prompt.row is None and not self._place(prompt):
                break
            end = min(len(prompt.tokens), prompt.done + budget)
            if prompt.done < prompt.cut < end:
                end = prompt.cut
            if end < len(prompt.tokens):
                end -= end % CHUNK_SIZE
            batch.append((prompt, end))
            budget -= end - prompt.done
            samples -= len(prompt.samples)
            if end < len(prompt.tokens):
                break  # the rest of it comes first in the next step
            self._waiting.popleft()
        if not batch:
            return False
        pieces = [prompt.tokens[prompt.done : end] for prompt, end in batch]
        starts, rows = [prompt.done for prompt, _ in batch], [prompt.row for prompt, _ in batch]
        if sum(map(len, pieces)) < MIN_ROWS:
            # One that nobody asked for, so that the others do not notice being few.
            pieces, starts, rows = [*pieces, [0] * MIN_ROWS], [*starts, 0], [*rows, len(self._cache.length) - 1]
        device = self._cache.length.device
        ids = torch.tensor([token for piece in pieces for token in piece], device=device)
        packing = Packing.from_lengths([len(p) for p in pieces], device, starts if any(starts) else None)
        logits = self.model.prefill(ids, packing, self._cache, torch.tensor(rows, device=device))
        for i, (prompt, end) in enumerate(batch):
            assert prompt.row is not None
            self._prompt_tokens += end - prompt.done
            prompt.done = self._pages.length[prompt.row] = end
            if end == prompt.cut:
                self._prefixes.keep(prompt.tokens[:end], self._cache.export_row(prompt.row, end))
            if prompt.ready:
                self._prompt_logits[prompt.row - self._first_prompt_row] = logits[i]
                self._ready.append(prompt)
        return True

    def _place(self, prompt: Prompt) -> bool:
        """Gives a prompt a row, its pages, and what is known of its beginning; False if there is no room."""
        if not self._prompt_rows:
            return False
        row, length = self._prompt_rows[-1], len(prompt.tokens)
        wanted = self._pages.wanted(row, length)
        if wanted > self._pages.free - self._headroom():
            return False
        prompt.row = self._prompt_rows.pop()
        self._pages.grow_row(row, length)
        self._pages.push()
        state, prompt.cut = self._prefixes.find(prompt.tokens)
        if state is not None:
            self._cache.import_row(row, state)
            prompt.done = self._pages.length[row] = state.length
        return True

    def _headroom(self) -> int:
        """Pages left to those who run, so that letting one more in does not put another out at once."""
        return -(-self._rows.active // 8)

    # --------------------------------------------------------------------------------------------------- decode

    def _decode(self) -> Tensor:
        """Feeds the last token of every running sample; returns the next logits `[active, vocab]`."""
        self._make_room()
        active = self._rows.active
        if not active:
            return self._prompt_logits[:0]
        rows, lengths = max(active, MIN_ROWS), self._pages.length[:active]
        self._pages.grow(slice(active), lengths + 1)
        self._pages.push()
        cache = self._cache.view(rows)
        if rows > active:
            cache.clear_rows(slice(active, rows))  # idle rows start over every step, lest they run past the end
        logits = self.model.decode(self._rows.last_token[:rows], cache, longest=int(lengths.max()))[:active]
        self._pages.length[:active] += 1
        return logits

    def _make_room(self) -> None:
        """Sees to it that each running sample has a page for its next token."""
        while True:
            rows = slice(self._rows.active)
            if self._pages.wanted(rows, self._pages.length[rows] + 1) <= self._pages.free:
                return
            if not self._displace():
                row = max(range(self._rows.active), key=lambda i: (self._rows.samples[i].request.order, i))
                sample = self._rows.samples[row]
                self._leave([row], keep_state=True)
                self._paused.appendleft(sample)
                self._preemptions += 1

    def _displace(self, keep: Prompt | None = None) -> bool:
        """Takes the row and pages of the prompt that came last, which is to be prefilled again later.

        Returns:
            Whether there was one besides `keep`.
        """
        placed = [p for p in (*self._waiting, *self._ready) if p.row is not None and p is not keep]
        if not placed:
            return False
        last = max(placed, key=lambda p: p.request.order)
        self._unprefill(last)
        if last in self._ready:
            self._requeue([last])
        return True

    def _advance(self, logits: Tensor) -> None:
        """Draws a token for every row, and takes out the rows whose answer is complete."""
        self._generated_tokens += self._rows.active
        done = self._rows.draw(logits, self.weight_version)
        requests = dict.fromkeys(self._rows.samples[row].request for row in done)
        self._leave(done, keep_state=False)
        for request in requests:
            if request.finished:
                self._finish(request)

    # ---------------------------------------------------------------------------------------------- bookkeeping

    @property
    def _first_prompt_row(self) -> int:
        return len(self._rows.last_token)

    def _leave(self, rows: list[int], keep_state: bool) -> None:
        """Takes samples out of their rows, with their answers and, if wanted, the state to go on from."""
        if not rows:
            return
        self._pages.push()
        for row, answer in zip(rows, self._rows.answers(rows), strict=True):
            sample = self._rows.samples[row]
            sample.answer = answer
            if keep_state:
                sample.state = self._cache.export_row(row, int(self._pages.length[row]))
            self._pages.release(row)
        moved = self._rows.remove(rows)
        if moved:
            device = self._cache.length.device
            source, target = torch.tensor(moved, device=device).T
            self._cache.copy_rows(source, target)
            for mover, hole in moved:
                self._pages.move(mover, hole)

    def _take_out(self, request: Request, keep_state: bool) -> None:
        """Takes a request out of rows and queues; see `_leave`."""
        for prompt in [p for p in (*self._waiting, *self._ready) if p.request is request]:
            self._unprefill(prompt)
        self._waiting = deque(p for p in self._waiting if p.request is not request)
        self._ready = deque(p for p in self._ready if p.request is not request)
        rows = [i for i, s in enumerate(self._rows.samples) if s.request is request]
        self._leave(rows, keep_state)
        self._paused = deque(s for s in self._paused if s.request is not request)

    def _take_finished(self) -> list[RequestOutput]:
        done, self._finished = self._finished, []
        return [self._output(request) for request in done]

    def _finish(self, request: Request) -> None:
        del self._requests[request.id]
        self._finished.append(request)

    def _unprefill(self, prompt: Prompt) -> None:
        """The prompt gives its row back, and is to be prefilled from the beginning."""
        if prompt.row is not None:
            self._pages.release(prompt.row)
            self._prompt_rows.append(prompt.row)
        prompt.row, prompt.done, prompt.cut = None, 0, 0

    def _requeue(self, prompts: list[Prompt]) -> None:
        self._ready = deque(p for p in self._ready if p not in prompts)
        self._waiting = deque(sorted([*self._waiting, *prompts], key=lambda p: p.request.order))

    def _sample(
        self, request: Request, index: int, answer: Answer | None = None, state: RowState | None = None
    ) -> Sample:
        stop = None
        if request.params.stop:
            assert self.tokenizer is not None  # checked
            stop = StopStrings(self.tokenizer, request.params.stop, request.params.min_tokens)
            if answer is not None:
                stop.feed(answer.token_ids)
        return Sample(request, index, answer or Answer(), state, stop)

    def _limit(self, request: Request) -> int:
        return min(request.params.max_tokens, self.max_model_len - len(request.prompt))

    def _output(self, request: Request) -> RequestOutput:
        rows = {s: i for i, s in enumerate(self._rows.samples) if s.request is request}
        running = dict(zip(rows, self._rows.answers(list(rows.values())), strict=True)) if rows else {}
        outputs: list[CompletionOutput] = []
        for sample in request.samples:
            answer = running.get(sample, sample.answer)
            outputs.append(sample.output(answer, self._text(sample, answer)))
        return RequestOutput(request.id, request.prompt, outputs)

    def _text(self, sample: Sample, answer: Answer) -> str | None:
        if self.tokenizer is None:
            return None
        if sample.stop is not None:
            return sample.stop.text
        return str(self.tokenizer.decode(answer.token_ids, skip_special_tokens=True))

    def _raise_if_broken(self, output: RequestOutput) -> None:
        if any(o.finish_reason == "error" for o in output.outputs):
            raise FloatingPointError(
                f"the model's logits are not finite under weights version {self.weight_version}; "
                "the learner has diverged (lower the learning rate) or the checkpoint is damaged"
            )

    def _check(self, request_id: str, prompt: list[int], params: SamplingParams) -> None:
        vocab = self.model.config.vocab_size
        if request_id in self._requests:
            raise ValueError(f"there is a request {request_id!r} already")
        if not prompt:
            raise ValueError(f"prompt of request {request_id!r} is empty")
        if len(prompt) >= self.max_model_len:
            raise ValueError(
                f"prompt of request {request_id!r} has {len(prompt)} tokens and max_model_len is "
                f"{self.max_model_len}: no room for an answer; shorten the prompt or raise max_model_len"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            raise ValueError(f"prompt of request {request_id!r} has token ids outside the vocabulary 0..{vocab - 1}")
        check_params(params, vocab)
        if params.stop and self.tokenizer is None:
            raise ValueError("SamplingParams.stop needs an engine with a tokenizer")
        longest = min(len(prompt) + params.max_tokens, self.max_model_len)
        # Its prompt, and one sample of it beside, must fit with nobody else there.
        wanted = int(pages_of(longest)) + int(pages_of(len(prompt)))
        if wanted > self._pages.total:
            raise ValueError(
                f"request {request_id!r} may need {wanted} pages of {PAGE_SIZE} tokens and there are "
                f"{self._pages.total}: raise num_pages, or lower max_tokens"
            )


def _replay(sample: Sample) -> Prompt:
    """To compute a sample's tokens again, and go on from there."""
    sample.state = None
    return Prompt(sample.request, [*sample.request.prompt, *sample.answer.token_ids], [sample])
