"""Finding the answer in a completion. Linear in the length of the text, whatever the text."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Literal, get_args

from deltarl.reward.limits import MAX_ANSWER_CHARS, MAX_ITEMS
from deltarl.reward.prose import (
    bare_answer,
    is_denial,
    is_denied,
    is_denied_at,
    is_doubted_at,
    is_one_of_several,
    is_qualified,
    is_retracted_at,
)
from deltarl.reward.verdict import Reason

Marker = Literal["boxed", "####", "answer_tag", "the_answer_is", "any_marker", "anywhere"]
MARKERS: tuple[str, ...] = get_args(Marker)

_TAIL_CHARS = 4_000
"""How far from its end a completion is searched for an answer without a marker."""
_LAST_LINE_CHARS = 200

_BOX = re.compile(r"\\(?:boxed|fbox)(?:[ \n]{0,4}\{|[ \n]{1,4}(?=[0-9]))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_BETWEEN_BOXES = re.compile(r"(?:[\s$,;&.]|\\(?:quad|qquad|text|mbox|[()\[\],; ])|[{}]|and|or)*")
_JOINING_WORD = re.compile(r"[,;]|\b(?:and|or)\b")
_PARTING_WORD = re.compile(
    r"\b(?:but|so|thus|then|wait|hmm|let|actually|correction|finally|hence|therefore|however|which|gives?|no|not)\b"
    r"|i\.e\.|=|\n\s*\n|[.!?]\s+\w",
    re.IGNORECASE,
)
_MAX_GAP = 40

_ANSWER_IS = re.compile(
    r"(?:answer|(?:correct|right|best) (?:option|choice)) is(?![A-Za-z]|n['’]t):?|answer:|答案(?:是|为)?[:：]?"
    r"|réponse(?: est)?\s?:?",
    re.IGNORECASE,
)
_FINAL_ANSWER_IS = re.compile(r"final answer(?: is(?![A-Za-z]|n['’]t)|:)", re.IGNORECASE)
_PERCENT = re.compile(r"\s*\$?\s*(?:\\%|%|percent|pct)")
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)|。|I hope it is correct|<\|")
_REMARK = re.compile(r",?\s+(?:not|rather than|instead of|because|since)\b", re.IGNORECASE)
_TURN = re.compile(r"<(?:\|(?:im_start|im_end|endoftext|eot_id|end|eom_id|return)\|>|/s>|end_of_turn>)")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3,}")
_NUMBER = re.compile(r"(?:(?<![0-9A-Za-z])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?%?")


def extract_answer(text: str, marker: str = "boxed") -> str | None:
    r"""The answer a completion gives, or None: the first of ``candidates`` that is one."""
    return next((answer for answer in candidates(text, marker) if not isinstance(answer, Reason)), None)


def candidates(text: str, marker: str = "boxed") -> Iterator[str | Reason]:
    r"""What may be the answer of a completion, best first; several only where the marker leaves room for doubt.

    Args:
        text: the completion. Only what follows the last ``</think>`` counts, up to the end of the turn; an unclosed
            ``<think>`` means no answer.
        marker: ``"boxed"`` (last ``\boxed{}`` or ``\fbox{}``, the inner one if nested; boxes side by side, or joined by
            "and" or a comma, are one list), ``"####"`` (rest of the line after the last one, GSM8K), ``"answer_tag"``
            (last ``<answer>..</answer>``), ``"the_answer_is"`` (rest of the sentence), ``"any_marker"`` (the first of
            these that there is), or ``"anywhere"`` (failing that, the last formula or number).

    Yields:
        Stripped answers, none empty or longer than ``MAX_ANSWER_CHARS``; last, where there are no more or none, the
        reason. Nothing follows an answer that is not terminated: it must not fall back to an earlier guess.

    Raises:
        ValueError: ``marker`` is unknown.
    """
    if marker not in MARKERS:
        raise ValueError(f"unknown answer marker {marker!r}; use one of {', '.join(MARKERS)}")
    _, closed, tail = text.rpartition("</think>")
    if not closed and "<think>" in text:
        yield Reason.UNFINISHED_THINKING
        return
    empty = False
    for answer in _found(_own_turn(tail), marker):
        if isinstance(answer, Reason):
            yield answer
            return
        if len(answer) > MAX_ANSWER_CHARS:
            yield Reason.TOO_LONG
            return
        stripped = answer.strip()
        if not stripped:
            empty = True
            continue
        yield stripped
        bare = bare_answer(stripped)
        if bare is not None:
            yield bare
    yield Reason.EMPTY if empty else Reason.NO_ANSWER


def _own_turn(text: str) -> str:
    """``text`` up to where another turn begins; a mark at the very start begins its own."""
    mark = _TURN.search(text, 1)
    return text[: mark.start()] if mark else text


def _found(text: str, marker: str) -> Iterator[str | Reason]:
    match marker:
        case "boxed":
            yield from _boxes(text)
        case "####":
            _, found, rest = text.rpartition("####")
            if found:
                answer, _, rest = rest.partition("\n")
                yield _unless_denied(answer, rest)
        case "answer_tag":
            _, opened, rest = text.rpartition("<answer>")
            answer, closed, rest = rest.partition("</answer>")
            if opened and not closed:
                yield Reason.UNTERMINATED
            elif opened:
                yield _unless_denied(answer, rest)
        case "the_answer_is":
            yield from _phrase(text)
        case _:
            yield from _by_any_marker(text, marker == "anywhere")


def _by_any_marker(text: str, anywhere: bool) -> Iterator[str | Reason]:
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
        if anywhere and _offers_several(text):
            yield Reason.AMBIGUOUS
        elif anywhere:
            yield from (
                answer
                for answer in _last_of(text[-_TAIL_CHARS:])
                if isinstance(answer, Reason) or len(answer) <= MAX_ANSWER_CHARS
            )


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = None
    for match in pattern.finditer(text):
        last = match
    return last


def _boxes(text: str) -> Iterator[str | Reason]:
    """The last box, with those before it that it is enumerated with."""
    starts = [(match.start(), match.end()) for match in _BOX.finditer(text)]
    if not starts:
        return
    last = _content(text, starts[-1][1])
    if isinstance(last, Reason):
        yield last
        return
    parts = [last[0]]
    begin, _ = starts[-1]
    for start, inside in reversed(starts[-MAX_ITEMS - 1 : -1]):
        box = _content(text, inside) if begin - start <= MAX_ANSWER_CHARS else Reason.TOO_LONG
        if isinstance(box, Reason) or box[1] > begin or not _enumerated(text[box[1] : begin]):
            break
        parts.insert(0, box[0])
        begin = start
    if is_denied_at(text, begin):
        yield Reason.RETRACTED
        return
    if len(set(parts)) == 1:
        del parts[1:]  # said twice
    percent = r"\%" if len(parts) == 1 and _PERCENT.match(text, last[1]) else ""
    yield _unless_denied(", ".join(parts) + percent, text[last[1] : last[1] + MAX_ANSWER_CHARS])


def _unless_denied(answer: str, rest: str) -> str | Reason:
    """``answer``, unless it or the words that come next say that it is wrong."""
    return Reason.RETRACTED if is_denial(answer.strip()) or is_retracted_at(rest, 0) else answer


def _enumerated(gap: str) -> bool:
    """Whether what stands between two boxes makes them one list."""
    if len(gap) > _MAX_GAP:
        return False
    if _BETWEEN_BOXES.fullmatch(gap):
        return True
    return _JOINING_WORD.search(gap) is not None and _PARTING_WORD.search(gap) is None


def _content(text: str, start: int) -> tuple[str, int] | Reason:
    """What stands in the box that opens before ``start``, and where the box ends; the reason if it does not."""
    if text[start - 1] != "{":
        bare = _BARE_BOX.match(text, start)
        assert bare is not None  # _BOX has seen its first digit
        return bare.group(), bare.end()
    depth = 1
    # One character beyond the limit is enough to see that an answer of the greatest allowed length is closed.
    limit = start + MAX_ANSWER_CHARS + 1
    for brace in _BRACE.finditer(text, start, limit):
        if brace.group() == "{":
            depth += 1
        elif brace.group() == "}":
            depth -= 1
            if depth == 0:
                return text[start : brace.start()], brace.end()
    return Reason.TOO_LONG if "}" in text[limit:] else Reason.UNTERMINATED


def _phrase(text: str) -> Iterator[str | Reason]:
    """The rest of the sentence behind the last "answer is", then without a remark, then behind an "is" of it."""
    anchor = _last_match(_ANSWER_IS, text)
    if anchor is None:
        return
    window = text[anchor.end() : anchor.end() + MAX_ANSWER_CHARS + 1].lstrip()
    end = _SENTENCE_END.search(window)
    if end is None and anchor.end() + MAX_ANSWER_CHARS + 1 < len(text):
        yield Reason.TOO_LONG
        return
    phrase = (window[: end.start()] if end else window).strip(" *\"'")
    rest = window[end.start() :] if end else ""
    stated = Reason.RETRACTED if is_doubted_at(text, anchor.start()) else _unless_denied(phrase, rest)
    yield stated
    if isinstance(stated, Reason):
        return
    remark = _REMARK.search(phrase)
    if remark and not is_retracted_at(phrase, remark.start()):
        phrase = phrase[: remark.start()]
        yield phrase
    before, found, rest = phrase.rpartition(" is ")
    if found and "," not in before and " not" not in phrase:
        yield rest.strip("* ")


def _offers_several(text: str) -> bool:
    """Whether the sentence behind the last "answer is", not readable as a whole, names different numbers."""
    phrase = next(_phrase(text), "")
    return len(set(_NUMBER.findall(phrase))) > 1 if isinstance(phrase, str) else False


def _last_of(text: str) -> Iterator[str | Reason]:
    """The last line if it is short of words, else what comes last behind an "is", a formula or number, behind a "="."""
    line = text.rstrip().rpartition("\n")[2][-_LAST_LINE_CHARS:].strip()
    if not any(char.isdigit() for char in line):
        yield line  # words, or a letter
    formula, number = _last_match(_FORMULA, text), _last_match(_NUMBER, text)
    last = sorted(((match.end(), match) for match in (formula, number) if match), key=lambda item: -item[0])
    if last and is_denied(text, last[0][1].start(), last[0][0]):
        yield Reason.RETRACTED
        return
    if not _WORD.search(line):
        yield line
    _, found, rest = text.rpartition(" is ")
    if found:
        yield rest.strip().rstrip(".").strip("* ")
    if last and is_one_of_several(text, last[0][1].start(), last[0][0]):
        yield Reason.AMBIGUOUS
        return
    qualified = bool(last) and is_qualified(text, last[0][1].start(), last[0][0])
    # An invisible character may part a number in two.
    if not qualified and not any(unicodedata.category(char) == "Cf" for char in text):
        yield from (match.group(match.lastindex or 0) for _, match in last)
        _, found, rest = text.rpartition("=")
        if found:
            yield rest.strip().rstrip(".").strip("* ")
    yield text
