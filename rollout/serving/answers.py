"""Answers in the form that OpenAI's API gives them, whole or in pieces."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltarl.rollout.detokenizer import REPLACEMENT
from deltarl.rollout.outputs import CompletionOutput, RequestOutput


def settled(output: CompletionOutput, stop: Sequence[str]) -> str:
    """The text of an answer that later tokens cannot change: without half a character, or half a stop string."""
    text = output.text or ""
    if output.finished:
        return text
    text = text.rstrip(REPLACEMENT)
    held = [n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])]
    return text[: len(text) - max(held, default=0)]


def usage(outputs: Sequence[RequestOutput]) -> dict[str, int]:
    """Counts of tokens; a prompt counts once for all of its samples."""
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
    sampled = sum(len(sample.token_ids) for output in outputs for sample in output.outputs)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


class AnswerFormat(ABC):
    """How the answers to one request are written down. All its pieces have the same id."""

    name: str  # of the object, whole and in pieces
    piece_name: str

    def __init__(self, model: str, tokenizer: PreTrainedTokenizerBase, with_logprobs: bool):
        self.tokenizer, self.with_logprobs = tokenizer, with_logprobs
        self._head = {"id": f"{self.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    @property
    @abstractmethod
    def id_prefix(self) -> str: ...

    @abstractmethod
    def text_fields(self, text: str, whole: bool) -> dict[str, Any]:
        """The fields of a choice that hold its text, or the next piece of it."""

    @abstractmethod
    def logprobs(self, output: CompletionOutput, tokens: slice, offset: int) -> dict[str, Any]:
        """Log-probabilities of some tokens; `offset` is where the text of the first begins."""

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Choices to begin a stream with."""
        return []

    def whole(self, choices: list[dict[str, Any]], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        return {**self._head, "object": self.name, "choices": choices, "usage": usage(outputs)}

    def piece(self, choices: list[dict[str, Any]], counts: dict[str, int] | None = None) -> dict[str, Any]:
        return {**self._head, "object": self.piece_name, "choices": choices, "usage": counts}

    def choice(
        self,
        index: int,
        output: CompletionOutput,
        text: str,
        tokens: slice = slice(None),
        *,
        offset: int = 0,
        whole: bool = True,
    ) -> dict[str, Any]:
        return {
            "index": index,
            **self.text_fields(text, whole),
            "logprobs": self.logprobs(output, tokens, offset) if self.with_logprobs else None,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }

    def token(self, token_id: int) -> str:
        """Its text; its id, if it is a part of a character and has none: several may look alike, and are keys."""
        text = str(self.tokenizer.decode([token_id]))
        return f"token_id:{token_id}" if REPLACEMENT in text else text


class CompletionFormat(AnswerFormat):
    """Of /v1/completions."""

    name = piece_name = "text_completion"
    id_prefix = "cmpl"

    def text_fields(self, text: str, whole: bool) -> dict[str, Any]:
        return {"text": text}

    def logprobs(self, output: CompletionOutput, tokens: slice, offset: int) -> dict[str, Any]:
        texts = [self.token(t) for t in output.token_ids[tokens]]
        offsets = [offset]
        for text in texts[:-1]:
            offsets.append(offsets[-1] + len(text))
        tops = (output.top_logprobs or [])[tokens]
        return {
            "tokens": texts,
            "token_logprobs": output.logprobs[tokens],
            "top_logprobs": [{self.token(t): logprob for t, logprob in top.items()} for top in tops],
            "text_offset": offsets[: len(texts)],
        }


class ChatFormat(AnswerFormat):
    """Of /v1/chat/completions."""

    name, piece_name = "chat.completion", "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def text_fields(self, text: str, whole: bool) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}} if whole else {"delta": {"content": text}}

    def logprobs(self, output: CompletionOutput, tokens: slice, offset: int) -> dict[str, Any]:
        tops = (output.top_logprobs or [])[tokens]
        return {
            "content": [
                {**self._entry(token, logprob), "top_logprobs": [self._entry(*pair) for pair in top.items()]}
                for token, logprob, top in zip(output.token_ids[tokens], output.logprobs[tokens], tops, strict=True)
            ]
        }

    def opening(self, index: int) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self.token(token_id)
        known = text != f"token_id:{token_id}"
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if known else None}


class Piecewise:
    """Turns what there is of a request, again and again, into the choices of a stream's pieces."""

    def __init__(self, form: AnswerFormat, first_index: int, samples: int, stop: Sequence[str]):
        self._form, self._first_index, self._stop = form, first_index, stop
        self._characters, self._tokens, self._ended = [0] * samples, [0] * samples, [False] * samples

    def opening(self) -> list[dict[str, Any]]:
        return [c for i in range(len(self._tokens)) for c in self._form.opening(self._first_index + i)]

    def choices(self, output: RequestOutput) -> list[dict[str, Any]]:
        """What is new since the last time."""
        new = []
        for sample in output.outputs:
            i = sample.index
            text, tokens = settled(sample, self._stop), len(sample.token_ids)
            piece = text[self._characters[i] :]
            if self._ended[i] or not (
                piece or sample.finished or (self._form.with_logprobs and tokens > self._tokens[i])
            ):
                continue
            where = slice(self._tokens[i], tokens)
            new.append(
                self._form.choice(self._first_index + i, sample, piece, where, offset=self._characters[i], whole=False)
            )
            self._characters[i] += len(piece)
            self._tokens[i], self._ended[i] = tokens, sample.finished
        return new
