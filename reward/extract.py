"""Finding the answer in a completion. Linear in the length of the text, whatever the text."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal, get_args

from deltarl.reward.attached import with_attachments
from deltarl.reward.limits import MAX_ANSWER_CHARS, MAX_ITEMS
from deltarl.reward.prose import (
    bare_answer,
    is_asked_at,
    is_changed_at,
    is_denial,
    is_denied,
    is_denied_at,
    is_doubted_at,
    is_one_of_several,
    is_qualified,
    is_retracted_at,
    says_nothing,
)
from deltarl.reward.rivals import NEAR, are_several, has_alternative, is_one_of_a_series, same_statement, same_value
from deltarl.reward.verdict import Reason

Marker = Literal["boxed", "####", "answer_tag", "the_answer_is", "any_marker", "anywhere"]
MARKERS: tuple[str, ...] = get_args(Marker)

_TAIL_CHARS = 4_000
"""How far from its end a completion is searched for an answer without a marker."""
_LAST_LINE_CHARS = 200

_MAX_BOXES = 300
"""How many boxes, tags or statements before the last one are looked at."""

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?:[ \n]{0,4}\{|[ \n]{0,4}(?=[0-9]))")
_NAMED = re.compile(r"(\S?)\s*(?<![A-Za-z\\])([A-Za-z](?:_\{?\w{1,9}\}?)?)\s*&?=[\s$]*$")
_LEFT_SIDE = re.compile(r"([^=$,;.&\n]{1,40})&?=\s*$")
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
    r"(?:answer|(?:correct|right|best) (?:option|choice)) (?:is|would be|should be|must be|comes out to|equals)"
    r"(?![A-Za-z]|n['’]t):?|answer\s?\*{0,2}\s?[:：]|^[ \t]*(?:#+[ \t]*|\*\*)(?:final )?answer(?:\*\*)?[ \t]*\n"
    r"|答案(?:是|为)?[:：]?|答えは|답은|réponse(?: (?:finale )?est)?\s?:?|respuesta(?: (?:final|correcta))?\s?(?:es|:)"
    r"|resposta(?: final)?\s?(?:é|:)|risposta(?: finale)?\s?(?:è|:)|(?:antwort|lösung)\s?(?:ist|lautet|:)\s?:?"
    r"|ответ\s?(?::|-|—|–|равен|это)",
    re.IGNORECASE | re.MULTILINE,
)
_FINAL_ANSWER_IS = re.compile(r"final answer(?: is(?![A-Za-z]|n['’]t)|\s?\*{0,2}\s?:|(?:\*\*)?[ \t]*\n)", re.IGNORECASE)
_OPENING_TAG = re.compile(r"<answer>", re.IGNORECASE)
_CLOSING_TAG = re.compile(r"</answer>", re.IGNORECASE)
_PERCENT = re.compile(r"\s*\$?\s*(?:\\%|%|percent|pct)")
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)|。|I hope it is correct|<\|")
_REMARK = re.compile(r",?\s+(?:not|rather than|instead of|because|since)\b", re.IGNORECASE)
_TURN = re.compile(
    r"<(?:\|(?:im_start|im_end|endoftext|eot_id|end|eom_id|return|start_header_id|user)\|>|/s>|end_of_turn>)"
    r"|\n(?:#+ ?|\*\*)?(?:Human|User):"
)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3,}")
_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+|(?<![0-9,])[0-9]+,[0-9]{1,2}(?![0-9,])|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?%?"
)


def extract_answer(text: str, marker: str = "boxed", trusted: bool = False) -> str | None:
    r"""The answer a completion gives, or None: the first of ``candidates`` that is one."""
    return next((answer for answer in candidates(text, marker, trusted) if not isinstance(answer, Reason)), None)


def candidates(text: str, marker: str = "boxed", trusted: bool = False) -> Iterator[str | Reason]:
    r"""What may be the answer of a completion, best first; several only where the marker leaves room for doubt.

    Args:
        text: the completion. Only what follows the last ``</think>`` counts, up to the end of the turn; an unclosed
            ``<think>`` means no answer.
        marker: ``"boxed"`` (last ``\boxed{}`` or ``\fbox{}``, the inner one if nested; boxes side by side, or joined by
            "and" or a comma, are one list), ``"####"`` (rest of the line after the last one, GSM8K), ``"answer_tag"``
            (last ``<answer>..</answer>``), ``"the_answer_is"`` (rest of the sentence), ``"any_marker"`` (the first of
            these that there is), or ``"anywhere"`` (failing that, the last formula or number).
        trusted: the text is a worked solution, so its last box counts whatever was boxed before.

    Yields:
        Stripped answers, none empty or longer than ``MAX_ANSWER_CHARS``; last, where there are no more or none, the
        reason. Nothing follows an answer that is not terminated: it must not fall back to an earlier guess.

    Raises:
        ValueError: ``marker`` is unknown.
    """
    if marker not in MARKERS:
        raise ValueError(f"unknown answer marker {marker!r}; use one of {', '.join(MARKERS)}")
    closed = text.rfind("</think>")
    if closed >= 0:
        text = text[closed + len("</think>") :]
    elif "<think>" in text:
        yield Reason.UNFINISHED_THINKING
        return
    empty = False
    for answer in _found(_own_turn(text), marker, trusted):
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
        if marker != "boxed" and _BOX.search(stripped):
            boxed = _boxed(stripped)
            yield Reason.NO_ANSWER if boxed is None else boxed
            return
        yield stripped
        bare = bare_answer(stripped)
        if bare is not None:
            yield bare
    yield Reason.EMPTY if empty else Reason.NO_ANSWER


def _own_turn(text: str) -> str:
    """``text`` up to where another turn begins; a mark at the very start begins its own."""
    # Far quicker than the pattern, which needs one of them.
    possible = "<" in text or "User:" in text or "Human:" in text
    mark = _TURN.search(text, 1) if possible else None
    return text[: mark.start()] if mark else text


def _found(text: str, marker: str, trusted: bool = False) -> Iterator[str | Reason]:
    match marker:
        case "boxed":
            boxed = _boxed(text, trusted)
            if boxed is not None:
                yield boxed
        case "####":
            *before, rest = text.rsplit("####", _MAX_BOXES)
            if before:
                answer, _, rest = rest.partition("\n")
                earlier = _distances(before[1:], lambda part: part.partition("\n")[0])
                yield Reason.AMBIGUOUS if are_several(answer, earlier) else _unless_denied(answer, rest)
        case "answer_tag":
            yield from _tags(text)
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
        yield from _found(text, "boxed")
    elif _OPENING_TAG.search(text):
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


def _tags(text: str) -> Iterator[str | Reason]:
    """What is between the last pair of tags."""
    opened = list(_OPENING_TAG.finditer(text))[-_MAX_BOXES:]
    if not opened:
        return
    closed = _CLOSING_TAG.search(text, opened[-1].end())
    if closed is None:
        yield Reason.UNTERMINATED
        return
    answer = text[opened[-1].end() : closed.start()]
    between = [text[one.end() : next_.start()] for one, next_ in pairwise(opened)]
    if are_several(answer, _distances(between, lambda part: _CLOSING_TAG.split(part, 1)[0])):
        yield Reason.AMBIGUOUS
        return
    yield _unless_denied(answer, text[closed.end() : closed.end() + MAX_ANSWER_CHARS])


def _distances(parts: list[str], value: Callable[[str], str]) -> Iterator[tuple[int, str]]:
    """The value that each part begins with, and how far it is from the end of the parts; last one first."""
    distance = 0
    for part in reversed(parts):
        found = value(part)
        yield distance + len(part) - len(found), found
        distance += len(part)


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = None
    for match in pattern.finditer(text):
        last = match
    return last


def _boxed(text: str, trusted: bool = False) -> str | Reason | None:
    """The last box with what is attached to it, and those before it that it is enumerated with; None without a box."""
    first = text.find("box")  # far quicker than the pattern
    if first < 0:
        return None
    starts = [(match.start(), match.end()) for match in _BOX.finditer(text, max(0, first - len(r"\frame")))]
    if not starts:
        return None
    last = _content(text, starts[-1][1])
    if isinstance(last, Reason):
        return last
    content, end = last
    begin, _ = starts[-1]
    boxes, parts = [begin], [_whole(text, begin, end, content)]
    for start, inside in reversed(starts[-MAX_ITEMS - 1 : -1]):
        box = _content(text, inside) if begin - start <= MAX_ANSWER_CHARS else Reason.TOO_LONG
        if isinstance(box, Reason) or box[1] > begin or not _enumerated(text[box[1] : begin]):
            break
        parts.insert(0, _whole(text, start, box[1], box[0]))
        boxes.insert(0, start)
        begin = start
    rest = "" if says_nothing(text[end:]) else text[end:]
    denied = is_denied_at(text, begin) or is_denial(content.strip())
    if denied or (rest and (is_asked_at(rest, 0) or is_retracted_at(rest, 0))):
        return Reason.RETRACTED
    percent = r"\%" if rest and _PERCENT.match(rest) else ""
    if not trusted and _offers_another(text, begin, content, percent, rest, starts[: -len(boxes)]):
        return Reason.AMBIGUOUS
    if len(parts) == 1:
        return content + percent if parts[0] == content else parts[0]
    if all(same_value(part, parts[-1]) for part in parts):
        return parts[-1] + (percent if parts[-1] == content else "")  # said twice
    names = [_name(text, start) for start in boxes]
    if all(names) and len(set(names)) == len(names):
        parts = [f"{name} = {part}" for name, part in zip(names, parts, strict=True)]
    return ", ".join(parts)


def _whole(text: str, start: int, end: int, content: str) -> str:
    """A box with what is attached to it, unless it is empty."""
    return with_attachments(text, start, end, content) if content.strip() else ""


def _offers_another(
    text: str, begin: int, content: str, percent: str, rest: str, earlier: list[tuple[int, int]]
) -> bool:
    """Whether another box, the words around the last one, or a statement in the ``rest`` offer another answer."""
    if earlier and are_several(content, _earlier_boxes(text, earlier, begin)):
        return True
    if is_changed_at(text, begin):
        return True
    if has_alternative(text[max(0, begin - NEAR) : begin], rest[:NEAR], content + percent):
        return True
    later = _last_match(_ANSWER_IS, rest) if rest else None
    return later is not None and not same_statement(_sentence(rest, later.end()), content)


def _earlier_boxes(text: str, starts: list[tuple[int, int]], begin: int) -> Iterator[tuple[int, str]]:
    """The boxes before the answer that are not said to be something else, with their distances; last one first."""
    side = _left_side(text, begin)
    for start, inside in reversed(starts[-_MAX_BOXES:]):
        box = _content(text, inside)
        if isinstance(box, Reason) or box[1] > begin:
            continue
        other = _left_side(text, start)
        named_otherwise = bool(side and other and side != other)
        distance = begin - box[1]
        if named_otherwise or (distance <= NEAR and _is_announced(text, start, box[1], begin)):
            distance = _TAIL_CHARS
        yield distance, box[0]


def _is_announced(text: str, start: int, end: int, begin: int) -> bool:
    """Whether "final answer" stands before the box at ``begin`` and not before that at ``text[start:end]``."""
    if _FINAL_ANSWER_IS.search(text, max(0, start - _TAIL_CHARS), start):
        return False
    return len(_FINAL_ANSWER_IS.findall(text, end, begin)) == 1


def _name(text: str, start: int) -> str:
    """``x`` where "x =" stands before ``start``, and it is not the end of a formula."""
    window = max(0, start - _MAX_GAP)
    named = _NAMED.search(text, window, start) if _is_equated(text, window, start) else None
    return "" if named is None or (named[1] in tuple("+-*/^_)}]=|0123456789") and named[1]) else named[2]


def _left_side(text: str, start: int) -> str:
    """What is said to be equal to what stands at ``start``; empty if nothing."""
    window = max(0, start - 2 * _MAX_GAP)
    side = _LEFT_SIDE.search(text, window, start) if _is_equated(text, window, start) else None
    return "".join(side[1].split()) if side else ""


def _is_equated(text: str, window: int, start: int) -> bool:
    """Whether an equals sign comes right before ``start``: a quick way to see that no pattern that needs it matches."""
    return text[window:start].rstrip().endswith("=")


def _sentence(text: str, start: int) -> str:
    """The rest of the sentence that ``start`` is in."""
    rest = text[start : start + MAX_ANSWER_CHARS].lstrip()
    end = _SENTENCE_END.search(rest)
    return rest[: end.start()] if end else rest


def _unless_denied(answer: str, rest: str) -> str | Reason:
    """``answer``, unless it or the words that come next say that it is wrong."""
    return Reason.RETRACTED if is_denial(answer.strip()) or is_retracted_at(rest, 0) else answer


def _enumerated(gap: str) -> bool:
    """Whether what stands between two boxes makes them one list."""
    if len(gap) > _MAX_GAP:
        return False
    name = _name(gap, len(gap))
    if name:
        gap = gap[: gap.rindex(name)]
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
    for earlier in list(_ANSWER_IS.finditer(text, max(0, anchor.start() - NEAR), anchor.start())):
        if not same_statement(_sentence(text, earlier.end()), phrase):
            yield Reason.AMBIGUOUS
            return
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
    if last and is_one_of_a_series(text, last[0][1].start(), last[0][0]):
        yield Reason.AMBIGUOUS
        return
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
