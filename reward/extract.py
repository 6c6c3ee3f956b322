"""Finding the answer in a completion. Linear in the length of the text, whatever the text."""

import re
from typing import Literal, get_args

from deltarl.reward.limits import MAX_ANSWER_CHARS

Marker = Literal["boxed", "####", "answer_tag", "the_answer_is"]
MARKERS: tuple[str, ...] = get_args(Marker)

_BOX = re.compile(r"\\(?:boxed|fbox)[ \n]{0,4}\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_ANSWER_IS = re.compile(r"answer is:?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)")


def extract_answer(text: str, marker: str = "boxed") -> str | None:
    r"""The answer a completion gives, or None.

    Args:
        text: the completion. Only what follows the last ``</think>`` counts; an unclosed ``<think>`` means no answer.
        marker: ``"boxed"`` (last ``\boxed{}`` or ``\fbox{}``, the inner one if nested), ``"####"`` (rest of the line
            after the last one, GSM8K), ``"answer_tag"`` (last ``<answer>..</answer>``) or ``"the_answer_is"`` (rest of
            the sentence).

    Returns:
        The stripped answer; None when there is none, it is empty, the last one is not terminated (a truncated answer
        must not fall back to an earlier guess), or it is longer than ``MAX_ANSWER_CHARS``.

    Raises:
        ValueError: ``marker`` is unknown.
    """
    if marker not in MARKERS:
        raise ValueError(f"unknown answer marker {marker!r}; use one of {', '.join(MARKERS)}")
    _, closed, tail = text.rpartition("</think>")
    if not closed and "<think>" in text:
        return None
    match marker:
        case "boxed":
            answer = _last_box(tail)
        case "####":
            answer = _after_hashes(tail)
        case "answer_tag":
            answer = _last_tag(tail)
        case _:
            answer = _after_answer_is(tail)
    if answer is None or len(answer) > MAX_ANSWER_CHARS:
        return None
    return answer.strip() or None


def _last_match_end(pattern: re.Pattern[str], text: str) -> int | None:
    end = None
    for match in pattern.finditer(text):
        end = match.end()
    return end


def _last_box(text: str) -> str | None:
    start = _last_match_end(_BOX, text)
    if start is None:
        return None
    depth = 1
    # One character beyond the limit is enough to see that an answer of the greatest allowed length is closed.
    for brace in _BRACE.finditer(text, start, start + MAX_ANSWER_CHARS + 1):
        if brace.group() == "{":
            depth += 1
        elif brace.group() == "}":
            depth -= 1
            if depth == 0:
                return text[start : brace.start()]
    return None


def _after_hashes(text: str) -> str | None:
    _, found, rest = text.rpartition("####")
    return rest.split("\n", 1)[0] if found else None


def _last_tag(text: str) -> str | None:
    _, opened, rest = text.rpartition("<answer>")
    answer, closed, _ = rest.partition("</answer>")
    return answer if opened and closed else None


def _after_answer_is(text: str) -> str | None:
    start = _last_match_end(_ANSWER_IS, text)
    if start is None:
        return None
    window = text[start : start + MAX_ANSWER_CHARS + 1].lstrip()
    end = _SENTENCE_END.search(window)
    return (window[: end.start()] if end else window).strip(" *")
