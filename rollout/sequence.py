"""Requests and samples as the engine keeps track of them, on the host."""

from dataclasses import dataclass, field, fields

from transformers import PreTrainedTokenizerBase

from deltarl.model.cache import RowState
from deltarl.rollout.detokenizer import Detokenizer
from deltarl.rollout.outputs import CompletionOutput, FinishReason, RoutedExperts
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.rng import derive_seed
from deltarl.rollout.stop_strings import StopStrings


@dataclass
class Answer:
    """What was sampled so far; see `CompletionOutput`."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampling_logprobs: list[float] = field(default_factory=list)
    weight_versions: list[int] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)

    def copy(self) -> "Answer":
        """One that stays as it is when this one grows."""
        return Answer(*(list(getattr(self, f.name)) for f in fields(self)))


@dataclass(eq=False)
class Sample:
    """One of the samples of a request.

    Attributes:
        answer: what was sampled, as far as it is known on the host: all but what its row has got since.
        prefilled: tokens of the answer that were last computed with the prompt, the others one by one as sampled.
        state: where it goes on from, if it was taken out of its row.
        stop: finds its stop strings, if it has any.
    """

    request: "Request"
    index: int
    answer: Answer = field(default_factory=Answer)
    prefilled: int = 0
    state: RowState | None = None
    stop: StopStrings | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    routed_experts: RoutedExperts | None = None
    _detokenizer: Detokenizer | None = field(default=None, init=False)

    @property
    def seed(self) -> int:
        return derive_seed(self.request.params.seed, self.index)

    def output(self, tokenizer: PreTrainedTokenizerBase | None) -> CompletionOutput:
        """What is known of it, which may be asked again and again: only the new tokens are decoded."""
        answer = self.answer.copy()
        return CompletionOutput(
            index=self.index,
            token_ids=answer.token_ids,
            logprobs=answer.logprobs,
            sampling_logprobs=answer.sampling_logprobs,
            weight_versions=answer.weight_versions,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            text=None if tokenizer is None else self._text(tokenizer),
            top_logprobs=None if self.request.params.logprobs is None else answer.top_logprobs,
            routed_experts=self.routed_experts,
        )

    def _text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        if self.stop is not None:
            return self.stop.text
        if self._detokenizer is None:
            self._detokenizer = Detokenizer(tokenizer)
        self._detokenizer.feed(self.answer.token_ids[self._detokenizer.fed :])
        return self._detokenizer.text


@dataclass(eq=False)
class Request:
    """
    Attributes:
        order: requests are started in this order, and preempted in the reverse.
    """

    id: str
    order: int
    prompt: list[int]
    params: SamplingParams
    samples: list[Sample] = field(default_factory=list)

    def add_sample(
        self,
        index: int,
        tokenizer: PreTrainedTokenizerBase | None,
        answer: Answer | None = None,
        prefilled: int = 0,
        state: RowState | None = None,
    ) -> None:
        """A new sample, or one that goes on; args are as for `Sample`. Stop strings need a tokenizer."""
        sample = Sample(self, index, answer or Answer(), prefilled, state)
        if self.params.stop:
            assert tokenizer is not None
            sample.stop = StopStrings(tokenizer, self.params.stop, self.params.min_tokens)
            sample.stop.feed(sample.answer.token_ids)
        self.samples.append(sample)

    @property
    def finished(self) -> bool:
        return all(s.finish_reason is not None for s in self.samples)


@dataclass(eq=False)
class Prompt:
    """Tokens to be prefilled once for some samples of a request: its prompt, or also the answer of one that goes on.

    Attributes:
        samples: those that were not yet started.
        row: of the cache, while it is there.
        done: tokens that are prefilled.
        cut: where to stop on the way and remember the state, for other prompts that begin the same.
    """

    request: Request
    tokens: list[int]
    samples: list[Sample]
    row: int | None = None
    done: int = 0
    cut: int = 0

    @property
    def ready(self) -> bool:
        return self.done == len(self.tokens)
