r"""Which option of a multiple-choice problem an answer names: ``B``, ``(B)``, ``B. 12 km``, "so it must be B, not A".

Used only where gold is a letter or the question lists options. A letter in running text counts where the text says
that it is the answer; the article "A", the pronoun "I" and letters in formulas never do.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deltarl.reward.vocabulary import DENYING, WRONG

_WRAPPERS = re.compile(
    r"\\(?:text(?:bf|rm|it|normal)?|mathrm|mathbf|mathsf|mathit|operatorname|rm|bf)(?![A-Za-z])|[{}$*]|\\[()\[\] ,;:!]"
    r"|\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\q?quad"
)
_LEAD = re.compile(
    r"(?:(?:so|hence|thus|therefore|then|the|my|final|correct|right|best|answer|option|choice|letter|is|be|must)\b"
    r"|[\s,:])*",
    re.IGNORECASE,
)
_ALONE = re.compile(r"\(\s?([A-Ja-j])\s?\)|([A-Ja-j])(?=[).:\s]*$)|([A-J])[).:]")
_TOKEN = re.compile(r"(?<![A-Za-z0-9'’\\_^])([A-J])(?![A-Za-z0-9'’_^])")
_CLAUSE = re.compile(r"([,;.!?\n。，；！？]|\b(?:but|because|since|so|therefore|thus|hence)\b)", re.IGNORECASE)
_CUE = re.compile(
    r"(?:\b(?:answer|option|choice|letter|choose|chose|pick|select|is|be|it's|sure|surely|definitely|certainly|clearly"
    r"|probably|likely|est|es|ist)\b|[:：]|[是为選选])[\s(\[\"']*$",
    re.IGNORECASE,
)
_OPENING = re.compile(r"[\s(\[\"']*")
_BARE = re.compile(r"(?:and|or|maybe|perhaps|possibly|also|even|[\s()\[\]\"'/&]|[A-J](?![A-Za-z]))+", re.IGNORECASE)
_DENIED_BEFORE = re.compile(DENYING, re.IGNORECASE)
_DENIED_AFTER = re.compile(
    rf"\)?\s*(?:(?:is|was|are|were|seems|looks)\s+(?:\w+ly\s+)?(?:not|out|{WRONG})\b"
    r"|(?:is|was|can|could|does|do)n['’]t\b|(?:cannot|can not|does not)\b|不对|错)",
    re.IGNORECASE,
)
_NO_ARTICLE = re.compile(
    r"\)|\s+[A-J](?![A-Za-z])|\s*(?:$|[.:,;!?\n。，；]|(?:is|was|because|since|and|or|not|non|as|but|seems|can|could|cannot)\b|不)"
)
_APPLIED = re.compile(r"[A-Za-z0-9]\($")
_IN_FORMULA_BEFORE = re.compile(r"(?:[=+*/^<>|±×·√≤≥≠\-]|\\[A-Za-z]+)\s*$")
_IN_FORMULA_AFTER = re.compile(r"\s*[=+*/^<>|±×·√≤≥≠\\\-]|\(")
_AROUND = rf"(?:{_WRAPPERS.pattern}|\s)*"
_BEGINS_WITH_LETTER = re.compile(rf"{_AROUND}(?:\({_AROUND})?[A-J]{_AROUND}(?:[.):]|$)")
"""What ``_GOLD`` needs: a quick way to see that there is no need to take the wrappers off."""
_GOLD = re.compile(r"\(\s?([A-J])\s?\)(?:\s+([A-Za-z0-9\\.][^\n]+))?|([A-J])(?:[.):]\s*([^\n]*))?")


@dataclass(frozen=True, slots=True)
class Choice:
    """The options an answer names, normally one; none where it contradicts itself.

    ``text`` is what it says beside a letter it begins with.
    """

    letters: frozenset[str]
    text: str = ""


def read_choice(answer: str, any_case: bool = False) -> Choice | None:
    """The options that ``answer`` says are right, or None where it names none.

    Args:
        answer: an extracted answer.
        any_case: whether a small letter standing alone counts; without a list of options it may be a variable.
    """
    plain = _WRAPPERS.sub(" ", answer).replace("~", " ").strip()
    lead = _LEAD.match(plain)
    at = lead.end() if lead else 0
    alone = _ALONE.match(plain, at) or _ALONE.match(plain)
    if alone:
        letter = next(filter(None, alone.groups()))
        if letter.isupper() or any_case:
            text = plain[alone.end() :].lstrip(" ).:,;\n").rstrip()
            affirmed = _affirmed(plain[at:])
            return Choice(frozenset() if affirmed is None else affirmed | {letter.upper()}, text)
    letters = _affirmed(plain[at:])
    return None if letters == frozenset() else Choice(letters or frozenset())


def _affirmed(text: str) -> frozenset[str] | None:
    """The letters that a text says are the answer, and those that it names in the same breath.

    None where it says of one that it is and is not.
    """
    found: set[str] = set()
    other: set[str] = set()
    denied: set[str] = set()
    listed, explains = False, False
    for at, clause in enumerate(filter(None, _CLAUSE.split(text))):
        if _CLAUSE.fullmatch(clause):
            explains = clause.casefold() in ("because", "since")
            continue
        stands = [] if explains else list(_mentions(clause))
        mentions = [(letter, before) for letter, before, is_denied in stands if not is_denied]
        denied |= {letter for letter, _, is_denied in stands if is_denied}
        letters = {letter for letter, _ in mentions}
        starts = at == 0 and any(_OPENING.fullmatch(before) for _, before in mentions)
        if starts or any(_CUE.search(before) for _, before in mentions):
            found |= letters
        elif letters and _BARE.fullmatch(clause):
            found |= letters
            listed = True
        else:
            other |= letters
    if found & denied:
        return None
    return frozenset(found | other if listed else found)


def _mentions(clause: str) -> Iterator[tuple[str, str, bool]]:
    """The letters that stand for options, each with what stands before it and whether it is denied."""
    for match in _TOKEN.finditer(clause):
        letter, before, after = match[1], clause[: match.start()], clause[match.end() :]
        enclosed = before.endswith("(") and after.startswith(")")
        if enclosed and _APPLIED.search(before):
            continue
        if not enclosed and (_IN_FORMULA_BEFORE.search(before) or _IN_FORMULA_AFTER.match(after)):
            continue
        if not enclosed and (letter == "I" or (letter == "A" and not _NO_ARTICLE.match(after))):
            continue
        yield letter, before, bool(_DENIED_BEFORE.search(before) or _DENIED_AFTER.match(after))


def gold_choice(gold: str) -> Choice | None:
    """The option that a reference answer is: ``B``, ``(B)``, ``B. 12 km`` or ``(B) Cecile``; None if it is none."""
    match = _GOLD.fullmatch(_WRAPPERS.sub(" ", gold).strip()) if _BEGINS_WITH_LETTER.match(gold) else None
    if match is None:
        return None
    letter, text = match[1] or match[3], match[2] or match[4] or ""
    return Choice(frozenset({letter}), text)


def letters_of(text: str, options: Mapping[str, str]) -> frozenset[str]:
    """The options of which ``text`` is the text; normally one or none."""
    folded = fold(text)
    return frozenset(letter for letter, option in options.items() if fold(option) == folded)


def fold(text: str) -> str:
    """A text without what does not matter to the identity of an option: case, spaces, wrappers, a final stop."""
    return re.sub(r"\s+", "", _WRAPPERS.sub(" ", text)).casefold().rstrip(".,;")
