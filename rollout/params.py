"""What to sample and what came out. Field names are vLLM's where vLLM has the field."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class SamplingParams:
    """How to continue one prompt.

    Attributes:
        n: samples per prompt; the prompt is prefilled once for all of them.
        temperature: divides the logits; 0 is greedy.
        top_p: keep the smallest set of tokens whose probability reaches it (1 keeps all).
        top_k: keep the k most likely tokens (0 keeps all).
        max_tokens: most tokens to sample, the stop token included.
        stop_token_ids: tokens that end an answer; they are part of it.
        seed: sample i of the prompt depends on (seed, i) alone, not on what else is in the batch.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 16
    stop_token_ids: tuple[int, ...] = field(default=())
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "n": self.n >= 1,
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "max_tokens": self.max_tokens >= 1,
        }
        for name, ok in checks.items():
            if not ok:
                raise ValueError(f"SamplingParams.{name} = {getattr(self, name)} is out of range")


@dataclass(frozen=True)
class Trajectory:
    """One sampled answer.

    Attributes:
        prompt_ids, completion_ids: token ids; the stop token, if any, is the completion's last.
        logprobs: log-probability of each completion token at the sampling temperature, before top-k and top-p.
        weight_version: version of the weights that sampled it.
        finish_reason: "stop" at a stop token, "length" at max_tokens or the end of the context.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    weight_version: int
    finish_reason: Literal["stop", "length"]
