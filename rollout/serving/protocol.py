"""The requests of OpenAI's completions API, with the fields that vLLM adds to it, and what they ask of the engine.

Fields that change nothing about the text, and those nobody knows, are ignored, as OpenAI-compatible servers do. Fields
that would change it and that this server cannot honour are refused.
"""

import inspect
import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictInt, model_validator
from transformers import PreTrainedTokenizerBase

from deltarl.rollout.params import RepetitionDetection, SamplingParams
from deltarl.rollout.serving.errors import bad_request

# What asks for nothing, beside null, and what to do instead of the others.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "best_of": ((1,), "sample n answers and choose among them"),
    "echo": ((False,), "put the prompt before the answer yourself"),
    "suffix": (("",), "the model only continues a prompt"),
    "use_beam_search": ((False,), "sample with temperature 0"),
    "prompt_logprobs": ((0,), "leave it out"),
    "tools": (([],), "describe the tools in a message"),
    "tool_choice": (("none", "auto"), "describe the tools in a message"),
    "functions": (([],), "describe the functions in a message"),
    "function_call": (("none", "auto"), "describe the functions in a message"),
    "response_format": (({"type": "text"},), "ask for the format in a message"),
    "structured_outputs": ((), "ask for the format in the prompt"),
    "guided_json": ((), "ask for the format in the prompt"),
    "guided_regex": ((), "ask for the format in the prompt"),
    "guided_choice": ((), "ask for the format in the prompt"),
    "modalities": ((["text"],), 'only "text" is served'),
    "audio": ((), "only text is served"),
}
MOST_SAMPLES = 128

TokenIds = Annotated[list[StrictInt], Field(min_length=1)]


class StreamOptions(BaseModel):
    """
    Attributes:
        include_usage: end the stream with the counts of tokens.
    """

    include_usage: bool = False


class SamplingRequest(BaseModel):
    """What both kinds of request have. Defaults are OpenAI's; sampling fields are those of `SamplingParams`.

    Attributes:
        model: of this server; may be left out.
        seed: the same request with the same seed gets the same answer; another one each time if None.
        stop_token_ids: further tokens to end at, beside the end-of-sequence tokens of the checkpoint.
        ignore_eos: go on past the checkpoint's end-of-sequence tokens.
    """

    model: str | None = None
    n: int = Field(1, ge=1, le=MOST_SAMPLES)
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int = Field(0, ge=0)
    stop: str | list[str] = Field(default_factory=list)
    stop_token_ids: list[int] = Field(default_factory=list)
    ignore_eos: bool = False
    seed: int | None = None
    repetition_detection: RepetitionDetection | None = None
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, fields: Any) -> Any:
        """Clients send null for "the default"; and refuses what cannot be honoured."""
        if not isinstance(fields, dict):
            return fields
        fields = {name: value for name, value in fields.items() if value is not None}
        for name, (harmless, instead) in _REFUSED.items():
            if name in fields and fields[name] not in harmless:
                raise bad_request(
                    f"{name} = {fields[name]!r:.80} is not supported by this server: {instead}", name, "unsupported"
                )
        return fields

    def top_logprobs_asked(self) -> int | None:
        """How many of the most likely tokens to return with each token; None for no log-probabilities at all."""
        raise NotImplementedError

    def sampling_params(self, eos_token_ids: tuple[int, ...], default_max_tokens: int) -> SamplingParams:
        """
        Raises:
            ApiError: fields that do not go together.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        eos = () if self.ignore_eos else eos_token_ids
        try:
            return SamplingParams(
                n=self.n,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
                repetition_penalty=self.repetition_penalty,
                logit_bias=self.logit_bias,
                max_tokens=self.max_tokens or default_max_tokens,
                min_tokens=self.min_tokens,
                stop=tuple(text for text in stop if text),
                stop_token_ids=tuple(dict.fromkeys((*eos, *self.stop_token_ids))),
                seed=secrets.randbits(63) if self.seed is None else self.seed,
                logprobs=self.top_logprobs_asked(),
                repetition_detection=self.repetition_detection,
            )
        except ValueError as error:
            raise bad_request(str(error)) from error


class CompletionRequest(SamplingRequest):
    """Body of POST /v1/completions: a prompt as text or token ids, or several.

    Attributes:
        logprobs: return so many of the most likely tokens of every step; 0 for the sampled one alone.
    """

    prompt: str | TokenIds | Annotated[list[str] | list[TokenIds], Field(min_length=1)]
    logprobs: int | None = Field(None, ge=0, le=20)

    def top_logprobs_asked(self) -> int | None:
        return self.logprobs

    def prompts(self) -> list[str] | list[list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


class TextPart(BaseModel):
    """The only kind of part that a message may have."""

    type: Literal["text"]
    text: str


class Message(BaseModel, extra="allow"):
    """One message of a chat. Fields beside these are given to the chat template."""

    role: str
    content: str | list[TextPart] | None = None

    def for_template(self) -> dict[str, Any]:
        parts = self.content or ""
        content = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {**self.model_dump(), "content": content}


class ChatRequest(SamplingRequest):
    """Body of POST /v1/chat/completions.

    Attributes:
        max_completion_tokens: the newer name of `max_tokens`; goes before it.
        logprobs, top_logprobs: return the log-probability of every token, and so many of the most likely ones.
        add_generation_prompt: end the prompt with the beginning of the assistant's message.
        chat_template_kwargs: further variables of the template, such as `enable_thinking`.
    """

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_limit(self) -> "ChatRequest":
        self.max_tokens = self.max_completion_tokens or self.max_tokens
        return self

    def top_logprobs_asked(self) -> int | None:
        return self.top_logprobs if self.logprobs else None

    def prompt_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """
        Raises:
            ApiError: the tokenizer has no chat template, or it does not take these messages.
        """
        if tokenizer.chat_template is None:
            raise bad_request(
                "this checkpoint's tokenizer has no chat template: use /v1/completions with a prompt", "messages"
            )
        # Only variables: a template of the client's own would be a program of the client's own.
        taken = inspect.signature(tokenizer.apply_chat_template).parameters.keys() & self.chat_template_kwargs.keys()
        if taken:
            raise bad_request(f"chat_template_kwargs cannot set {min(taken)}: leave it out", "chat_template_kwargs")
        try:
            return list(
                tokenizer.apply_chat_template(
                    [message.for_template() for message in self.messages],
                    add_generation_prompt=self.add_generation_prompt,
                    tokenize=True,
                    return_dict=False,
                    **self.chat_template_kwargs,
                )
            )
        except Exception as error:  # a template is a program of the checkpoint's author, and raises what it likes
            raise bad_request(f"the chat template does not take these messages: {error}", "messages") from error
