"""Answers that are words, or stand behind words: times of day, sentences, "the answer is ..."."""

import re
from typing import Literal

from deltarl.reward.tree import Clock, Text
from deltarl.reward.units import conversion
from deltarl.reward.vocabulary import denies, names_a_number

_FEWEST_WORDS = 3
"""From here on, what is not mathematics is a sentence: right only where gold is the same one."""

_TIME = re.compile(
    r"\s*\$?(?:\\(?:text|mathrm)\{\s*)?([0-9]{1,2})(?:(?:\\!|\{)?:(?:\\!|\})?([0-5][0-9]))?\s*(?:\\(?:text|mathrm)\{)?[\s~]*(?:([AaPp])\.?\s*[Mm]\.?)?\s*\}?\$?\.?\s*"
)
_HALVES: dict[str, Literal["am", "pm"]] = {"a": "am", "p": "pm"}
_MONTHS = {name[:3]: name for name in (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)}  # fmt: skip
_MONTH = "|".join(
    rf"{name}|{name[:3]}\.?|sept\.?" if name[0] == "s" else rf"{name}|{name[:3]}\.?" for name in _MONTHS.values()
)
_DAY = r"(?:0?[1-9]|[12][0-9]|3[01])"
_DATE = re.compile(
    rf"\s*(?:the\s+)?(?:(?P<month>{_MONTH})\s*(?P<day>{_DAY})(?:st|nd|rd|th)?(?:,?\s*(?P<year>[0-9]{{4}}))?"
    rf"|(?P<other_day>{_DAY})(?:st|nd|rd|th)?\s*(?:of\s+)?(?P<other_month>{_MONTH})(?:,?\s*(?P<other_year>[0-9]{{4}}))?)"
    r"[\s.]*",
    re.IGNORECASE,
)
_TEXT_MARKS = re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mbox)\s*\{|[{}$]|\^|\\[, ]")
_DIGIT = re.compile("[0-9]")
_IN_NO_DATE = re.compile(r"[=+\-/()\[\]<>*|_]|\\[^tm, ]")
_LONGEST_DATE = 60
_PROSE = re.compile(r"[A-Za-z0-9\s,.;:!?'\"$()\-]+")
_SENTENCE_PARTS = re.compile(r"[a-z]+|-?[0-9]+(?:\.[0-9]+)?|[()]")
_INTRODUCTION = re.compile(
    r"\s*(?:(?:so|thus|hence|therefore|then|we|find|get|have|obtain|see|that|the|final|answers?|solutions?|set|general"
    r"|is|are|it|results?|only|domain|range|in|interval|notation|about|approximately|approx|roughly)\b[\s,:.]*|\\approx\s*"
    r"|\$\s*(?=\\approx))+(?=[$\\(\[0-9]|-[$\\(\[0-9])",
    re.IGNORECASE,
)
_LABEL = re.compile(r"\s*[A-Za-z][A-Za-z\-]+(?:[ ,]+[A-Za-z\-]+)*\s*:\s*(?=\$|\\[(\[])")
_WITH_ARTICLE = re.compile(r"\s*(?:an?|the)\s+([a-z]{3,}(?:\s+[a-z]{3,}){0,2})[\s.]*", re.IGNORECASE)
_YES_OR_NO = re.compile(r"(yes|no)\s*[.,;:]\s+(?:[A-Za-z']+\s+){2}", re.IGNORECASE)

_PROPERTIES = (
    "odd|even|increasing|decreasing|constant|positive|negative|prime|composite|rational|irrational|finite|infinite"
    "|convergent|divergent|continuous|differentiable|injective|surjective|bijective|convex|concave|periodic|symmetric"
    "|linear|parallel|perpendicular|equilateral|isosceles|acute|obtuse"
    "|circle|ellipse|parabola|hyperbola|line|plane|sphere|square|rectangle|rhombus|trapezoid"
)
_STATEMENT = re.compile(rf"[^.]*\b(?:is|are)\s+(?:an?\s+|always\s+)?({_PROPERTIES})\s*\.?\s*", re.IGNORECASE)
_NOT_PLAIN = re.compile(r"\b(?:and|or|if|when|either|neither|nor|but|both)\b|[,;:?]", re.IGNORECASE)
_COPULA = re.compile(r"\b(?:is|are)\b", re.IGNORECASE)

_SYNONYMS = {"yes": "true", "no": "false", "dne": "does not exist"}


def time_of_day(text: str) -> Clock | None:
    """``12:05 a.m.``, ``6 pm``, ``18:30``; None if it is not one."""
    match = _TIME.fullmatch(text)
    if match is None or not (match[2] or match[3]) or int(match[1]) > 24:
        return None
    return Clock(int(match[1]), int(match[2] or 0), _HALVES[match[3].lower()] if match[3] else "")


def date(text: str) -> Text | None:
    """``March 5``, ``5th of March``, ``Mar. 5, 2020``, written in one way; None if it is none."""
    possible = len(text) <= _LONGEST_DATE and _DIGIT.search(text) and not _IN_NO_DATE.search(text)
    match = _DATE.fullmatch(_TEXT_MARKS.sub("", text)) if possible else None
    if match is None:
        return None
    month = _MONTHS[(match["month"] or match["other_month"])[:3].casefold()]
    day = match["day"] or match["other_day"]
    return Text(" ".join(filter(None, (month, day.lstrip("0"), match["year"] or match["other_year"]))))


def introduced(text: str) -> str | None:
    """What "the solution is" or "Speed of the boat:" introduces; None if nothing does."""
    match = _INTRODUCTION.match(text) or _LABEL.match(text)
    if match is None or denies(match.group()):
        return None
    rest = text[match.end() :]
    return None if ":" in rest and match.re is _LABEL else rest


def without_article(text: str) -> Text | None:
    """The ``parabola`` of "a parabola"; not of "a million" or "a meters", where the letter is a number."""
    match = _WITH_ARTICLE.fullmatch(text)
    words = match[1].casefold() if match else ""
    return Text(words) if words and not names_a_number(words) and conversion(words, words) is None else None


def yes_or_no(text: str) -> Text | None:
    """The "yes" or "no" that a sentence begins with."""
    match = _YES_OR_NO.match(text + " ")
    return Text(match[1].lower()) if match else None


def sentence(text: str) -> Text | None:
    """The words of a sentence, with its numbers; None if there are too few of them, or other characters."""
    folded = text.casefold()
    if len(re.findall(r"[a-z]{2,}", folded)) < _FEWEST_WORDS or not _PROSE.fullmatch(text):
        return None
    return Text(" ".join(_SENTENCE_PARTS.findall(folded)))


def statement(text: str) -> Text | None:
    """A sentence such as "The function $f(x)$ is odd.", formulas and all."""
    return None if _property_stated(text) is None else Text(" ".join(text.casefold().rstrip(" .").split()))


def _property_stated(text: str) -> str | None:
    """``odd`` in that sentence: the one property that a plain sentence states."""
    match = _STATEMENT.fullmatch(text)
    if match is None or len(_COPULA.findall(text)) > 1 or denies(text[: match.start(1)]) or _NOT_PLAIN.search(text):
        return None
    return match[1].lower()


def same_words(pred: Text, gold: Text) -> bool:
    """Whether two texts are the same: "yes" is "true", and a property may stand for a sentence that states it."""
    if _SYNONYMS.get(pred.words, pred.words) == _SYNONYMS.get(gold.words, gold.words):
        return True
    return _property_stated(pred.words) == gold.words or _property_stated(gold.words) == pred.words
