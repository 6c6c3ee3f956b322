"""What to sample. Field names and meanings are vLLM's where vLLM has the field."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RepetitionDetection:
    """Ends an answer that repeats itself: its last tokens are one pattern, `min_count` times in a row.

    Attributes:
        max_pattern_size, min_pattern_size: lengths of pattern to look for, in tokens.
        min_count: times that the pattern must stand there, at least 2.
    """

    max_pattern_size: int
    min_pattern_size: int = 1
    min_count: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.min_pattern_size <= self.max_pattern_size or self.min_count < 2:
            raise ValueError(f"{self}: needs 1 <= min_pattern_size <= max_pattern_size and min_count >= 2")


@dataclass(frozen=True)
class SamplingParams:
    """How to continue one prompt.

    Attributes:
        n: samples per prompt; the prompt is prefilled once for all of them.
        temperature: divides the logits; 0 is greedy.
        top_p: keep the smallest set of tokens whose probability reaches it (1 keeps all).
        top_k: keep the k most likely tokens (0 or -1 keeps all).
        min_p: keep tokens at least this fraction as likely as the likeliest (0 keeps all).
        repetition_penalty: divides the positive logits of tokens that the prompt or the answer has, and multiplies the
            negative ones (Keskar et al. 2019; 1 changes nothing).
        presence_penalty, frequency_penalty: taken from the logit of a token that the answer has, once or each time.
        logit_bias: added to the logits of some token ids.
        max_tokens: most tokens to sample, the stop token included.
        min_tokens: none of `stop_token_ids` is sampled, and no stop string looked for, before so many tokens.
        stop_token_ids: tokens that end an answer; they are part of it.
        stop: strings that end an answer; its text ends before them, its tokens with the one that completed the string.
        seed: sample i of the prompt depends on (seed, i) alone, not on what else is in the batch.
        logprobs: return so many most likely tokens of every step with their log-probabilities.
        repetition_detection: end an answer that goes round in circles.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    max_tokens: int = 16
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: int | None = None
    repetition_detection: RepetitionDetection | None = None

    def __post_init__(self) -> None:
        checks = {
            "n": self.n >= 1,
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= -1,
            "min_p": 0 <= self.min_p <= 1,
            "repetition_penalty": self.repetition_penalty > 0,
            "presence_penalty": -2 <= self.presence_penalty <= 2,
            "frequency_penalty": -2 <= self.frequency_penalty <= 2,
            "max_tokens": self.max_tokens >= 1,
            "min_tokens": 0 <= self.min_tokens <= self.max_tokens,
            "stop": all(self.stop) and not isinstance(self.stop, str),
            "logprobs": self.logprobs is None or 0 <= self.logprobs <= 20,
        }
        for name, ok in checks.items():
            if not ok:
                raise ValueError(f"SamplingParams.{name} = {getattr(self, name)!r} is out of range")
