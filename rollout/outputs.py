"""What came out of an engine. Names are vLLM's where vLLM has the field."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

FinishReason = Literal["stop", "length", "abort", "repetition", "error"]


class RoutedExperts(NamedTuple):
    """Which experts the tokens of an answer went to, each time under the weights that last computed the token's state.

    Attributes:
        prompt: `[tokens, layers, k]` small integers, of the layers that have experts; one array that the samples of a
            prompt share, unless new weights came between them.
        completion: the same of the answer's tokens but the last, which was not fed.
    """

    prompt: np.ndarray
    completion: np.ndarray


@dataclass(frozen=True)
class CompletionOutput:
    """One sampled answer, or as much of it as there is.

    Attributes:
        index: which of the request's samples.
        token_ids: the answer; a stop token, if any, is the last.
        logprobs: log-probability of each token under `softmax(logits / temperature)` over the whole vocabulary
            (temperature 1 where it is 0): what the learner computes for it.
        sampling_logprobs: the same under the distribution it was drawn from: after penalties, bias and truncation.
        weight_versions: version of the weights that sampled each token.
        finish_reason: "stop" at a stop token or string; "length" at max_tokens or the end of the context; "abort";
            "repetition" (see `RepetitionDetection`); "error", of the model; None while it goes on.
        stop_reason: the token id or string that stopped it, or what the error was.
        text: the answer as text, where the engine has a tokenizer.
        top_logprobs: for each token the most likely ones by id, with log-probabilities as in `logprobs`, if asked for.
        routed_experts: of an answer that came to its end, in an engine that records them.
    """

    index: int
    token_ids: list[int]
    logprobs: list[float]
    sampling_logprobs: list[float]
    weight_versions: list[int]
    finish_reason: FinishReason | None
    stop_reason: int | str | None = None
    text: str | None = None
    top_logprobs: list[dict[int, float]] | None = None
    routed_experts: RoutedExperts | None = None

    @property
    def cumulative_logprob(self) -> float:
        """Sum of `logprobs`."""
        return sum(self.logprobs)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True)
class RequestOutput:
    """A request and its samples, in the order of their index."""

    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return all(output.finished for output in self.outputs)
