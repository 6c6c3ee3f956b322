"""Requests and samples as the engine keeps track of them, on the host."""

from dataclasses import dataclass, field

from deltarl.model.cache import RowState
from deltarl.rollout.outputs import CompletionOutput, FinishReason
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


@dataclass(eq=False)
class Sample:
    """One of the samples of a request.

    Attributes:
        answer: what was sampled before it came to its row, and in the end all of it.
        state: where it goes on from, if it was taken out of its row.
        stop: finds its stop strings, if it has any.
    """

    request: "Request"
    index: int
    answer: Answer = field(default_factory=Answer)
    state: RowState | None = None
    stop: StopStrings | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def seed(self) -> int:
        return derive_seed(self.request.params.seed, self.index)

    def output(self, answer: Answer, text: str | None) -> CompletionOutput:
        return CompletionOutput(
            index=self.index,
            token_ids=answer.token_ids,
            logprobs=answer.logprobs,
            sampling_logprobs=answer.sampling_logprobs,
            weight_versions=answer.weight_versions,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            text=text,
            top_logprobs=None if self.request.params.logprobs is None else answer.top_logprobs,
        )


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
