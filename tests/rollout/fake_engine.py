"""An engine without a model: it answers with the prompt, over and over, a token a step."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from deltarl.rollout.outputs import CompletionOutput, FinishReason, RequestOutput
from deltarl.rollout.params import SamplingParams


@dataclass(frozen=True)
class FakeStats:
    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0


class FakeEngine:
    """
    Args:
        step_seconds: how long a step takes.
        fail_at: the step that raises.
        broken: the model's logits are not finite at the fifth token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        step_seconds: float = 0.0,
        fail_at: int | None = None,
        broken: bool = False,
    ):
        self.tokenizer, self.step_seconds, self.fail_at, self.broken = tokenizer, step_seconds, fail_at, broken
        self.requests: dict[str, tuple[list[int], SamplingParams, int]] = {}
        self.seen: list[SamplingParams] = []
        self.aborted: list[str] = []
        self.steps = 0
        self._stats = FakeStats()

    def add_request(self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        if 666 in params.logit_bias:
            raise ValueError("logit_bias has token id 666, outside the vocabulary")
        self.seen.append(params)
        self.requests[request_id] = (list(prompt_token_ids), params, 0)

    def abort_request(self, request_id: str) -> None:
        if self.requests.pop(request_id, None) is not None:
            self.aborted.append(request_id)

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def step(self) -> list[RequestOutput]:
        self.steps += 1
        if self.steps == self.fail_at:
            raise RuntimeError("out of memory")
        time.sleep(self.step_seconds)
        finished = []
        for request_id, (prompt, params, done) in list(self.requests.items()):
            self.requests[request_id] = (prompt, params, done + 1)
            output = self.progress(request_id)
            generated = self._stats.generated_tokens + params.n
            self._stats = replace(self._stats, generated_tokens=generated)
            if output.finished:
                finished.append(output)
                del self.requests[request_id]
        return finished

    def progress(self, request_id: str) -> RequestOutput:
        prompt, params, done = self.requests[request_id]
        return RequestOutput(request_id, prompt, [self._sample(i, prompt, params, done) for i in range(params.n)])

    def stats(self) -> FakeStats:
        return replace(self._stats, running=len(self.requests))

    def _sample(self, index: int, prompt: list[int], params: SamplingParams, done: int) -> CompletionOutput:
        tokens = list(itertools.islice(itertools.cycle(prompt), done))
        text = self.tokenizer.decode(tokens)
        reason: FinishReason | None = "length" if done >= params.max_tokens else None
        stop_reason: str | None = None
        for stop in params.stop:
            if stop in text:
                text, reason, stop_reason = text[: text.index(stop)], "stop", stop
        if self.broken and done == 5:
            reason, stop_reason = "error", "the model's logits are not finite"
        top = None if params.logprobs is None else [{t: -0.5, 3: -2.0} for t in tokens]
        return CompletionOutput(index, tokens, [-0.5] * done, [-0.5] * done, [0] * done, reason, stop_reason, text, top)
