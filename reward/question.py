r"""What a problem says about its answer: what it asks for, the options to choose from, the expressions it shows.

Everything here is a reading of prose by patterns, so it may be wrong; what follows from it is chosen with care: an
answer is never right only because a question was read in some way, unless it is right by the question's own list of
options or by a percent sign that the question makes superfluous.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from deltarl.reward.limits import ParseError
from deltarl.reward.parse import parse_answer
from deltarl.reward.tree import Equation, Node, Sym

_TAIL_CHARS = 8_000
"""How much of a problem is looked at, from its end: before it may stand other problems, solved as examples."""

_MAX_FORMULAS = 40
_MAX_FORMULA_CHARS = 300
_QUESTION_COLUMNS = ("question", "problem")

_LETTER = r"\( ?([A-J]) ?\)|(?<![A-Za-z0-9])([A-J])[).:](?![A-Za-z])|(?<![A-Za-z0-9])([A-J])\)"
_OPTION = re.compile(rf"(?:\\(?:text(?:bf|rm|it)?|mathrm|mathbf|rm|bf)\s*\{{\s*|\*\*)?(?:{_LETTER})(?:\s*\}}|\*\*)?")
_EDGE = " \t\n~;,:"
_SPACING = (r"\qquad", r"\quad", r"\ ", r"\,", r"\;", r"\:", r"\\", "{}")

_SENTENCE_END = re.compile(r"(?<=[.?!])\s|\n")
_AMOUNT = r"(?:percent(?:age)?|per cent)s?\b"
_FEW_WORDS = r"(?:[a-z'\-]+\s+){0,4}?"
_PERCENT = re.compile(
    rf"\b(?:what|which|how many|find|determine|calculate|compute|give|state)\s+{_FEW_WORDS}{_AMOUNT}"
    rf"|\b(?:as|in|to the nearest)\s+(?:a\s+)?(?:whole\s+|tenth of a\s+)?{_AMOUNT}",
    re.IGNORECASE,
)
_NUMBER_OF = r"(?:the\s+)?(?:exact\s+|numerical\s+)?(?:value|sum|product|difference|quotient|result)"
_VALUE = re.compile(
    r"\b(?:compute|calculate|evaluate|simplify|work out)\b"
    rf"|\bfind\s+{_NUMBER_OF}\b|\bwhat(?:\s+is|'s)\s+{_NUMBER_OF}\b",
    re.IGNORECASE,
)
# "What is 17 times 23?", "What is log 100?": a sum in words.
_SUM = re.compile(
    r"\bwhat(?:\s+is|'s)\s+(?:the\s+)?(?:\$\s*)?(?:-?[0-9(]|\\?(?:log|ln|sin|cos|tan|sqrt)(?![A-Za-z])"
    r"|(?:square|cube|natural log|factorial|common log)\w*\b)[^?\n]*(?:\?|$)",
    re.IGNORECASE,
)
_UNKNOWN = re.compile(r"(?<![A-Za-z\\])(?!a\b)[A-Za-z](?![A-Za-z])|\b(?:in terms|as a)\b", re.IGNORECASE)
_REDUCED = re.compile(
    r"\b(?:simplify|reduced?|(?:lowest|simplest|smallest) terms|simplest (?:radical )?form|simplified|common fraction"
    r"|(?:relatively|co)-?\s?prime)\b",
    re.IGNORECASE,
)
_EXPANDED = re.compile(r"\b(?:expand|multiply out|find the product|as a polynomial)\b", re.IGNORECASE)
_FACTORED = re.compile(
    r"\bfactor(?:i[sz]e|ed|ise|ing|i[sz]ation)?\b(?! of\b)|\bfactor(?:ed form|i[sz]ation) of\b", re.IGNORECASE
)

_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_ARITHMETIC = re.compile(r"(?<![0-9().])[0-9(][0-9().]*(?: ?[-+*/^×÷·]+ ?[0-9(][0-9().]*)+")
_BARE_ARITHMETIC = re.compile(rf"\s*{_ARITHMETIC.pattern}\s*=?\s*\??\s*")
_BLANK = re.compile(r"\s*=\s*(?:\?|\\_+|_+|\\boxed\s*\{[^{}]*\}|\\square)?\s*[.?]*\s*$")


@dataclass(frozen=True, slots=True)
class Question:
    """A problem, read for what bears on judging an answer to it.

    ``options`` are the texts by their letters, empty if there is nothing to choose from.
    """

    text: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    asks_percent: bool = False
    asks_value: bool = False
    asks_reduced: bool = False
    asks_expanded: bool = False
    asks_factored: bool = False

    def __hash__(self) -> int:
        return hash(self.text)


UNKNOWN = Question()
"""What is known where no question is given: nothing."""


@lru_cache(maxsize=4_096)
def read_question(text: str) -> Question:
    """Read a problem. Linear in its length; any text will do."""
    text = text[-_TAIL_CHARS:]
    stem, options = _split_options(text)
    return Question(
        text=text,
        options=MappingProxyType(options),
        asks_percent=any(_PERCENT.search(sentence) for sentence in _SENTENCE_END.split(stem)),
        asks_value=_VALUE.search(stem) is not None or _asks_what_a_formula_is(stem) or _asks_a_sum(stem),
        asks_reduced=_REDUCED.search(stem) is not None,
        asks_expanded=_EXPANDED.search(stem) is not None,
        asks_factored=_FACTORED.search(stem) is not None,
    )


@lru_cache(maxsize=1_024)
def expressions(question: Question) -> tuple[Node, ...]:
    """The formulas that a problem shows, and the sides of its equations; those that can be read."""
    found: list[Node] = []
    for text in _formulas(question.text):
        try:
            node = parse_answer(_BLANK.sub("", text))
        except ParseError:
            continue
        found.append(node)
        if isinstance(node, Equation):
            found += [side for side in node.sides if not isinstance(side, Sym)]
    return tuple(found)


def questions_of(prompts: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> list[str | None]:
    """The problem of each sample: from the column ``question`` or ``problem``, else from its prompt, else None.

    Of a prompt of chat messages it is the last one of the user.
    """
    column = next((columns[name] for name in _QUESTION_COLUMNS if name in columns), prompts)
    return [_prompt_text(value) for value in column]


def _prompt_text(prompt: Any) -> str | None:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list | tuple):
        for message in reversed(prompt):
            if isinstance(message, Mapping) and message.get("role") == "user":
                content = message.get("content")
                return content if isinstance(content, str) else None
    return None


def _split_options(text: str) -> tuple[str, dict[str, str]]:
    """A problem without its options, and the options: the last run of marks that begins with A, B."""
    marks = [(match["letter"] or "", match) for match in map(_lettered, _OPTION.finditer(text))]
    starts = [at for at, (first, second) in enumerate(pairwise(marks)) if (first[0], second[0]) == ("A", "B")]
    if not starts:
        return text, {}
    run = [marks[starts[-1]]]
    for mark in marks[starts[-1] + 1 :]:
        if ord(mark[0]) == ord(run[-1][0]) + 1:
            run.append(mark)
    ends = [match["start"] for _, match in run[1:]]
    last = re.compile(r"\n|$").search(text, run[-1][1]["end"])
    assert last is not None
    options = {
        letter: _trimmed(text[match["end"] : end])
        for (letter, match), end in zip(run, [*ends, last.start()], strict=True)
    }
    if not all(options.values()):
        return text, {}  # "from A) to B)": letters, but nothing to choose
    return text[: run[0][1]["start"]], options


def _lettered(match: re.Match[str]) -> dict[str, Any]:
    return {"letter": next(filter(None, match.groups())), "start": match.start(), "end": match.end()}


def _trimmed(text: str) -> str:
    """An option without the spacing and separators around it."""
    before = ""
    while text != before:
        before = text
        text = text.strip(_EDGE).rstrip(".")
        for command in _SPACING:
            text = text.removeprefix(command).removesuffix(command)
    # One of a pair of dollar signs that holds all options: $\textbf{(A)}\ 5 \qquad ...$
    return text.rstrip("$ ") if text.count("$") == 1 and text.endswith("$") else text


def _asks_a_sum(text: str) -> bool:
    return any(_UNKNOWN.search(match.group()) is None for match in _SUM.finditer(text))


def _asks_what_a_formula_is(text: str) -> bool:
    for match in re.finditer(r"\bwhat(?:\s+is|'s)\s+", text, re.IGNORECASE):
        formula = _FORMULA.match(text, match.end()) or _ARITHMETIC.match(text, match.end())
        if formula and text[formula.end() :].lstrip()[:1] in ("?", ""):
            return True
    return _BARE_ARITHMETIC.fullmatch(text) is not None


def _formulas(text: str) -> list[str]:
    found = [match.group(match.lastindex or 0) for match in _FORMULA.finditer(text)]
    found += [match.group() for match in _ARITHMETIC.finditer(_FORMULA.sub(" ", text))]
    return [formula for formula in found if len(formula) <= _MAX_FORMULA_CHARS][-_MAX_FORMULAS:]
