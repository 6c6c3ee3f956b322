"""Finding the answer in a completion. Linear in the length of the text, whatever the text."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Literal, get_args

from deltarl.reward.limits import MAX_ANSWER_CHARS, MAX_ITEMS

Marker = Literal["boxed", "####", "answer_tag", "the_answer_is", "any_marker", "anywhere"]
MARKERS: tuple[str, ...] = get_args(Marker)

_TAIL_CHARS = 4_000
"""How far from its end a completion is searched for an answer without a marker."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?:[ \n]{0,4}\{|[ \n]{1,4}(?=[0-9]))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_BETWEEN_BOXES = re.compile(r"(?:[\s$,;&]|\\(?:quad|qquad|text|mbox|[()\[\],; ])|[{}]|and|or)*")
_JOINING_WORD = re.compile(r"[,;]|\b(?:and|or)\b")
_PARTING_WORD = re.compile(
    r"\b(?:but|so|thus|then|wait|hence|therefore|however|which|gives?|no|not)\b|i\.e\.|=|\n\s*\n", re.IGNORECASE
)
_MAX_GAP = 40

_ANSWER_IS = re.compile(r"answer is:?|answer:|答案(?:是|为)?[:：]?|réponse(?: est)?\s?:?", re.IGNORECASE)
_FINAL_ANSWER_IS = re.compile(r"final answer(?: is|:)", re.IGNORECASE)
_PERCENT = re.compile(r"\s*\$?\s*(?:\\%|%|percent|pct)")
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)|。|I hope it is correct|<\|")
_TURN = re.compile(r"<\|(?:im_start|im_end|endoftext|eot_id)\|>")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"(?:(?<![0-9A-Za-z])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?%?")


def extract_answer(text: str, marker: str = "boxed") -> str | None:
    r"""The answer a completion gives, or None: the first of ``candidates``."""
    return next(candidates(text, marker), None)


def candidates(text: str, marker: str = "boxed") -> Iterator[str]:
    r"""What may be the answer of a completion, best first; several only where the marker leaves room for doubt.

    Args:
        text: the completion. Only what follows the last ``</think>`` counts; an unclosed ``<think>`` means no answer.
        marker: ``"boxed"`` (last ``\boxed{}`` or ``\fbox{}``, the inner one if nested; boxes joined by "and" or a comma
            are one list), ``"####"`` (rest of the line after the last one, GSM8K), ``"answer_tag"`` (last
            ``<answer>..</answer>``), ``"the_answer_is"`` (rest of the sentence), ``"any_marker"`` (the first of these
            that there is), or ``"anywhere"`` (failing that, the last formula or number).

    Yields:
        Stripped answers, none empty or longer than ``MAX_ANSWER_CHARS``. Nothing where the last answer is not
        terminated: a truncated answer must not fall back to an earlier guess.

    Raises:
        ValueError: ``marker`` is unknown.
    """
    if marker not in MARKERS:
        raise ValueError(f"unknown answer marker {marker!r}; use one of {', '.join(MARKERS)}")
    _, closed, tail = text.rpartition("</think>")
    if not closed and "<think>" in text:
        return
    for answer in _found(tail, marker):
        stripped = answer.strip() if len(answer) <= MAX_ANSWER_CHARS else ""
        if stripped:
            yield stripped


def _found(text: str, marker: str) -> Iterator[str]:
    match marker:
        case "boxed":
            yield from _boxes(text)
        case "####":
            _, found, rest = text.rpartition("####")
            if found:
                yield rest.split("\n", 1)[0]
        case "answer_tag":
            _, opened, rest = text.rpartition("<answer>")
            answer, closed, _ = rest.partition("</answer>")
            if opened and closed:
                yield answer
        case "the_answer_is":
            yield from _phrase(text)
        case _:
            yield from _by_any_marker(text, marker == "anywhere")


def _by_any_marker(text: str, anywhere: bool) -> Iterator[str]:
    text = _TURN.split(text, maxsplit=1)[0]
    concluded = _last_match(_FINAL_ANSWER_IS, text)
    boxed = _last_match(_BOX, text)
    if concluded and boxed and concluded.start() > boxed.start():
        yield from _phrase(text)
    elif boxed:
        yield from _boxes(text)
    elif "<answer>" in text:
        yield from _found(text, "answer_tag")
    elif "####" in text:
        yield from _found(text, "####")
    else:
        yield from _phrase(text)
        if anywhere:
            tail = text[-_TAIL_CHARS:]
            yield from _last_of(tail)
            yield tail


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = None
    for match in pattern.finditer(text):
        last = match
    return last


def _boxes(text: str) -> Iterator[str]:
    """The last box, with those before it that it is enumerated with."""
    starts = [(match.start(), match.end()) for match in _BOX.finditer(text)]
    if not starts:
        return
    last = _content(text, starts[-1][1])
    if last is None:
        return
    parts = [last[0]]
    begin, _ = starts[-1]
    for start, inside in reversed(starts[-MAX_ITEMS - 1 : -1]):
        box = _content(text, inside) if begin - start <= MAX_ANSWER_CHARS else None
        if box is None or box[1] > begin or not _enumerated(text[box[1] : begin]):
            break
        parts.insert(0, box[0])
        begin = start
    if len(set(parts)) == 1:
        del parts[1:]  # said twice
    percent = r"\%" if len(parts) == 1 and _PERCENT.match(text, last[1]) else ""
    yield ", ".join(parts) + percent


def _enumerated(gap: str) -> bool:
    """Whether what stands between two boxes makes them one list."""
    if len(gap) > _MAX_GAP or _PARTING_WORD.search(gap):
        return False
    return _BETWEEN_BOXES.fullmatch(gap) is not None or _JOINING_WORD.search(gap) is not None


def _content(text: str, start: int) -> tuple[str, int] | None:
    """What stands in the box that opens before ``start``, and where the box ends; None if it does not."""
    if text[start - 1] != "{":
        bare = _BARE_BOX.match(text, start)
        return (bare.group(), bare.end()) if bare else None
    depth = 1
    # One character beyond the limit is enough to see that an answer of the greatest allowed length is closed.
    for brace in _BRACE.finditer(text, start, start + MAX_ANSWER_CHARS + 1):
        if brace.group() == "{":
            depth += 1
        elif brace.group() == "}":
            depth -= 1
            if depth == 0:
                return text[start : brace.start()], brace.end()
    return None


def _phrase(text: str) -> Iterator[str]:
    """The rest of the sentence behind the last "answer is", and what is behind an "is" of that."""
    anchor = _last_match(_ANSWER_IS, text)
    if anchor is None:
        return
    window = text[anchor.end() : anchor.end() + MAX_ANSWER_CHARS + 1].lstrip()
    end = _SENTENCE_END.search(window)
    phrase = (window[: end.start()] if end else window).strip(" *\"'")
    yield phrase
    before, found, rest = phrase.rpartition(" is ")
    if found and "," not in before and " not" not in phrase:
        yield rest.strip("* ")


def _last_of(text: str) -> Iterator[str]:
    """What comes last behind an "is" of a phrase, its last formula or number, what comes last behind an equals sign."""
    _, found, rest = text.rpartition(" is ")
    if found:
        yield rest.strip().rstrip(".").strip("* ")
    if any(unicodedata.category(char) == "Cf" for char in text):
        return  # an invisible character may part a number in two
    formula, number = _last_match(_FORMULA, text), _last_match(_NUMBER, text)
    last = [(match.end(), match.group(match.lastindex or 0)) for match in (formula, number) if match]
    for _, answer in sorted(last, reverse=True):
        yield answer
    _, found, rest = text.rpartition("=")
    if found:
        yield rest.strip().rstrip(".").strip("* ")
