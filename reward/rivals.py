"""Other values that a completion offers beside the one taken for its answer: guesses in a row are no answer."""

import re
from collections.abc import Iterable
from string import ascii_lowercase

from deltarl.reward.limits import ParseError
from deltarl.reward.parse import parse_answer
from deltarl.reward.prose import last_word_may_be
from deltarl.reward.quick import judge_quickly
from deltarl.reward.tree import Node, Text

NEAR = 200
"""Another value marked as the answer so few characters before the last one leaves open which is meant."""

MOST = 4
"""And so do more than so many, however far away."""

_MAX_CHARS = 300
_SPACING = re.compile(r"[\s$*]|\\[,;:! ]")
_NUMBER = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|(?<![0-9,])[0-9]+,[0-9]{1,2}(?![0-9,])|[0-9]+)(?:\.[0-9]+)?")
_SENTENCE = re.compile(r"[?!;\n。？！；，]|[.,](?![0-9])")
_VALUE = r"(?:[A-Za-z]\s*=\s*)?(?P<value>-?\s*(?:\\[dt]?frac|\\sqrt|\\pi|[0-9])(?:\{[^{}]*\}|[^$\s;{}])*)"
_OR_AFTER = re.compile(
    r"(?:[\s$,.*;:~)\]]|\\[,;:! )\]])*(?:\\(?:text|mbox)\s*\{\s*)?\(?\s*"
    r"(?:or|vs\.?|maybe|perhaps|possibly|else)\b(?:\s+(?:maybe|perhaps|possibly|else|even|is it|it is|also))*"
    r"[\s$}(\\]*?" + _VALUE,
    re.IGNORECASE,
)
_OR_BEFORE = re.compile(
    r"(?P<value>-?[0-9][0-9.,/]*)[\s$)}\]]*(?:\\\))?(?:,\s*)?(?:\\(?:text|mbox)\s*\{\s*)?"
    r"\s*(?:or|vs\.?|maybe|perhaps|possibly)\b[\s$(}\\]*(?:[A-Za-z]\s*=\s*)?[\s$(\\]*$",
    re.IGNORECASE,
)
_OFFERING = frozenset(["or", "vs", "maybe", "perhaps", "possibly", *ascii_lowercase])
"""What can be the last word of ``_OR_BEFORE``, a name being a letter."""
_ENDING = r"(?=[ \t$)*}\].]*(?:$|\n|(?:,\s*)?(?:respectively|both|are)\b))"
_SPACES = r"(?:[ \t$]|\\[,;:! ])*"
_JOINT = r"(?:,(?:\s*and\b)?|;|&|\band\b|\\q?quad|\\(?:text|mbox)\s*\{\s*,?\s*(?:and|&)\s*\})"
_LISTED_AFTER = re.compile(
    rf"(?:{_SPACES}(?:[*)\]}}]|\\[)\]]))*{_SPACES}{_JOINT}{_SPACES}(?:\\?[(\[{{]{_SPACES})?"
    r"(?P<value>-?\s*(?:\\[dt]?frac|\\sqrt|\\pi|[0-9])(?:\{[^{}]*\}|,(?=[0-9]{3})|[^$\s;{},])*)"
    r"(?:,\s*(?:and\s+)?-?[0-9][0-9./]*)*" + _ENDING,
)
_LISTED_BEFORE = re.compile(
    r"(?:(?:^|\n)[ \t$]*|\b(?:answers?|solutions?|roots?|values?|zeros?)\b[^.\n=]{0,30}?(?:\bare|\bis|:)[\s$]*"
    r"(?:-?[0-9][0-9./]*[\s$]*,[\s$]*)?)(?P<value>-?[0-9][0-9./]*)[\s$]*(?:,(?:\s*and\b)?|;|&|\band\b)[\s$]*$"
)
_CORRECTION = re.compile(
    r"(?:[\s$.,;:?!()*\]}-]|\\[)\]])*"
    r"(?:(?:no|wait|actually|sorry|oops|correction|hmm|rather|instead|i mean)\b[\s,.:!]*)+"
    r"(?:(?:it|that|this|the|correct|right|final|answer|value|result|is|must|should|be|equals?|i|think|mean|so|we|get)\b"
    r"['’s]*[\s:]*)*[\s$(\\]*" + _VALUE,
    re.IGNORECASE,
)


def same_value(left: str, right: str) -> bool:
    """Whether two texts say the same, as far as can be told quickly."""
    if left == right or _SPACING.sub("", left) == _SPACING.sub("", right):
        return True
    if max(len(left), len(right)) > _MAX_CHARS:
        return False
    one, other = _read(left), _read(right)
    if one is None or other is None or isinstance(one, Text) != isinstance(other, Text):
        return False
    return any(
        compared is not None and compared[0] for compared in (judge_quickly(one, other), judge_quickly(other, one))
    )


def _read(text: str) -> Node | None:
    try:
        return parse_answer(text.strip().rstrip(".,;"))
    except ParseError:
        return None
    except Exception:
        return None  # no answer may end the run


def are_several(last: str, earlier: Iterable[tuple[int, str]]) -> bool:
    """Whether the values before the last one, each with its distance and nearest first, leave open which is meant."""
    others: list[str] = []
    for distance, value in earlier:
        if not value.strip() or same_value(value, last) or any(same_value(value, other) for other in others):
            continue
        others.append(value)
        if distance <= NEAR or len(others) > MOST:
            return True
    return False


def same_statement(left: str, right: str) -> bool:
    """Whether two sentences name the same value: they have a number in common, or no numbers to compare."""
    numbers, others = (set(_NUMBER.findall(text)) for text in (left, right))
    return not numbers or not others or bool(numbers & others) or same_value(left, right)


def has_alternative(before: str, after: str, value: str) -> bool:
    """Whether ``value``, between two pieces of text, is one of two: "6 or 5", "5, 6", "5, no, 6"."""
    found = [
        _OR_BEFORE.search(before) if last_word_may_be(_OFFERING, before) else None,
        _LISTED_BEFORE.search(before) if before.rstrip(" $")[-1:] in (",", ";", "&", "d") else None,
    ]
    if after:
        found += (_OR_AFTER.match(after), _LISTED_AFTER.match(after), _CORRECTION.match(after))
    return any(match is not None and not same_value(match["value"].rstrip(".,)\\"), value) for match in found)


def is_one_of_a_series(text: str, start: int, end: int) -> bool:
    """Whether the number ``text[start:end]`` follows others in the same words: "It is 1. It is 2.", "4 5 6", lines."""
    number = text[start:end]
    window = max(0, start - NEAR)
    sentences = _SENTENCE.split(text[window:end])
    last = _skeleton(sentences[-1])
    numbers = _NUMBER.findall(sentences[-1])
    if len(numbers) > 1:
        return not last.replace("#", "").strip(" /|-") and len(set(numbers)) > 1 and "-" not in last
    return any(_skeleton(sentence) == last and _NUMBER.findall(sentence) != [number] for sentence in sentences[:-1])


def _skeleton(sentence: str) -> str:
    return " ".join(_NUMBER.sub("#", sentence).casefold().replace("$", "").split())
