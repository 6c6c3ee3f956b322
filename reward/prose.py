"""The words around an answer: those that introduce it, and those that take it back. By patterns, in English mostly."""

import re

from deltarl.reward.vocabulary import COMPARED, DENYING, NOT, TIMES, WRONG

_NEAR = 200
"""Characters on each side of an answer that are looked at."""

_BESIDE = 40
"""Characters before an answer that can deny it directly."""

_FIRST_LETTERS = re.compile(r"[\W\d_]*+([^\W\d_]*+)")
_INTRODUCTION = re.compile(
    r"(?:\\text\s*\{\s*)?(?:(?:so|hence|thus|therefore|then|finally|we|find|get|have|obtain|conclude|that|the|our|my"
    r"|final|correct|right|answer|solution|value|result|is|are|equals?|it|this|must|be|donc"
    r"|la|réponse|est)\b[\s,:]*|答案(?:是|为)?[\s:：]*|\*\*)+",
    re.IGNORECASE,
)
_WRAPPED = re.compile(r"\\text\s*\{([^{}]*)\}\s*[.]?")

_NEGATED = re.compile(DENYING, re.IGNORECASE)
_CLAUSE_END = re.compile(
    r"[!?;\n。，；！？]|\.(?![0-9])|,(?![0-9]{3})|(?<!anything )\bbut\b|\b(?:so|therefore|thus|hence|then|which is)\b"
    r"|\bit['’]s\b",
    re.IGNORECASE,
)
_DENIED_BEFORE = re.compile(
    rf"(?:{NOT}|\bany\w*(?: \w+)? but\b|\bexcept\b)\s+(?:be\s+|equal\s+(?:to\s+)?|exactly\s+|simply\s+|just\s+)?"
    r"[\s$*(\[{\\\"']*$",
    re.IGNORECASE,
)
_DENYING = frozenset(
    ["not", "never", "neither", "nor", "cannot", "but", "except", "t", "be", "equal", "to", "exactly", "simply", "just"]
)
"""What can be the last word of a match; so too below."""
_DOUBTED_BEFORE = re.compile(r"(?:\b(?:not|never|doubt)|n['’]t)(?:\s+[\w'’]+){0,4}\s+$", re.IGNORECASE)
_DENIAL = re.compile(
    r"(?:\\text\s*\{\s*)?(?:\w+ly\s+)?(?:not|never|anything but|n['’]t)\b[\s}]+(?:\w+\s+){0,2}?[-$\\(0-9]"
    rf"|[^0-9:=]{{0,40}}{DENYING}[^0-9:=]{{0,20}}:",
    re.IGNORECASE,
)
_INTERJECTION = r"(?:(?:no|wait|hmm|but|oh|actually|oops|sorry)\b[\s,.!-]*)"
_THAT = r"(?:(?:this|that|it|which|the (?:above|last) answer)\b\s*)"
_IS = r"(?:(?:is|was|['’]s|seems|looks|must be)\s*)"
_WRONG = (
    rf"(?:\w+ly\s+|just\s+)?(?:(?:{WRONG})\b"
    r"|(?:not|n['’]t|cannot be|can['’]t be)\s+(?:(?:the\s+)?(?:right|correct|true|valid|answer|solution)|it)\b)"
)
_RETRACTION = re.compile(
    rf"[\s$*()\]}}\"'.,;:!\\-]*(?:text\s*\{{\s*)?(?:{_INTERJECTION}+{_THAT}?{_IS}?|{_THAT}?{_IS}){_WRONG}",
    re.IGNORECASE,
)
_ASKED = re.compile(r"[\s$*)\]}]*[?？][\s$*)\]}?!]*\Z")
_PERHAPS = r"\s*(?:maybe|perhaps|possibly|probably|also|even|else)?"
_SEVERAL = re.compile(
    rf"[0-9}})$][\s$*)]*[(\[]?\s*(?:,|;|/|\b(?:or|and|vs|maybe|perhaps|possibly)\b){_PERHAPS}[\s$(*\[\\]*$",
    re.IGNORECASE,
)
_QUALIFIED_BEFORE = re.compile(
    rf"\b(?:{COMPARED}|{TIMES}|at (?:least|most)|up to|over|under|above|below|between|exceed\w*|plus|times"
    r"|(?:third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth)s?)(?:\s+(?:of|the))*[\s$(:]*$",
    re.IGNORECASE,
)
_CHANGING = frozenset(["than", "from", "minus", "negative", "half", "twice", "double", "triple", "thrice", "of", "the"])
_CHANGED_BEFORE = re.compile(rf"\b(?:{COMPARED}|{TIMES})(?:\s+(?:of|the))*[\s$(*]+$", re.IGNORECASE)
_QUALIFIED_AFTER = re.compile(
    r"[\s$)]*(?:dozen|hundred|thousand|million|billion|trillion|squared|cubed|factorial|halves|halfs?|thirds?|quarters?"
    r"|fourths?|fifths?|tenths?|times|or (?:more|less|fewer)|and a (?:half|third|quarter)|plus|minus)\b"
    r"|\s*(?!\*\*)[!^*/+=<>≠≤≥]",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(
    rf"[\s$*)]*[,(]?\s*\b(?:or|vs|maybe|perhaps|possibly)\b{_PERHAPS}(?:\s+\w+)?[\s$(\\-]*[0-9a-z]", re.IGNORECASE
)


def bare_answer(answer: str) -> str | None:
    r"""``5`` for "Answer: 5", "So the answer is 5" and ``\text{Answer: }5``; None where nothing introduces it."""
    wrapped = _WRAPPED.fullmatch(answer)
    text = wrapped[1] if wrapped else answer
    introduction = _INTRODUCTION.match(text)
    if introduction is None:
        return None
    rest = text[introduction.end() :].lstrip(" :,*")
    if not wrapped and introduction.group().lstrip().startswith("\\text"):
        if not rest.startswith("}"):
            return None
        rest = rest[1:].lstrip(" :,*")
    rest = rest.rstrip(" *")
    return None if not rest or rest.startswith("- ") else rest  # a dash is no minus sign


def last_word_may_be(words: frozenset[str], before: str) -> bool:
    """Whether one of ``words`` may be the last word of ``before``, as a pattern needs that ends where it does.

    Such a pattern is tried at every character; this is a quick way to see that there is no need to.
    """
    found = _FIRST_LETTERS.match(before[::-1])
    assert found is not None  # it matches the empty text as well
    word = found[1][::-1]
    return word.casefold() in words or not word.isascii()


def says_nothing(after: str) -> bool:
    """Whether what follows an answer only ends a formula, a sentence or a line, so that no pattern finds more in it."""
    return not after.strip("$. \n")


def is_changed_at(text: str, start: int) -> bool:
    """Whether the words just before ``start`` make another value of what follows: "more than", "half of", "minus"."""
    before = text[max(0, start - _BESIDE) : start]
    return last_word_may_be(_CHANGING, before) and _CHANGED_BEFORE.search(before) is not None


def is_denied_at(text: str, start: int) -> bool:
    """Whether the words just before ``start`` say that what follows is not the answer: "is not ..."."""
    before = text[max(0, start - _BESIDE) : start]
    return last_word_may_be(_DENYING, before) and _DENIED_BEFORE.search(before) is not None


def is_doubted_at(text: str, start: int) -> bool:
    """Whether a statement that begins at ``start`` is denied as a whole: "I don't think that ..."."""
    return _DOUBTED_BEFORE.search(text[max(0, start - _NEAR) : start]) is not None


def is_denial(phrase: str) -> bool:
    """Whether a phrase begins by denying a value: "definitely not 5", "wrong: 5"; but not "not possible"."""
    return _DENIAL.match(phrase) is not None


def is_asked_at(text: str, end: int) -> bool:
    """Whether the text ends with a question mark right after ``end``."""
    return _ASKED.match(text, end) is not None


def is_retracted_at(text: str, end: int) -> bool:
    """Whether the words right after ``end`` take back what stands before: "... is wrong", "... No, that is wrong"."""
    return _RETRACTION.match(text[end : end + _NEAR]) is not None


def is_denied(text: str, start: int, end: int) -> bool:
    """Whether the clause around ``text[start:end]`` negates it or asks for it, or what follows takes it back."""
    before, after = text[max(0, start - _NEAR) : start], text[end : end + _NEAR]
    ends = [match.end() for match in _CLAUSE_END.finditer(before)]
    stop = _CLAUSE_END.search(after)
    clause = before[ends[-1] if ends else 0 :] + " " + (after[: stop.start()] if stop else after)
    asked = stop is not None and stop.group() in "?？"
    return asked or _NEGATED.search(clause) is not None or is_retracted_at(text, end)


def is_one_of_several(text: str, start: int, end: int) -> bool:
    """Whether another value is offered beside ``text[start:end]``: "5 or 6", "4, 5, 6"."""
    before, after = text[max(0, start - _NEAR) : start], text[end : end + _NEAR]
    return _SEVERAL.search(before) is not None or _ALTERNATIVE.match(after) is not None


def is_qualified(text: str, start: int, end: int) -> bool:
    """Whether a word beside ``text[start:end]`` makes another value of it: "more than 5", "half of 5", "5 million"."""
    before, after = text[max(0, start - _NEAR) : start], text[end : end + _NEAR]
    return _QUALIFIED_BEFORE.search(before) is not None or _QUALIFIED_AFTER.match(after) is not None
