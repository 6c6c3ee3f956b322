r"""Notations that are rewritten into others before an answer is read: ``0.333...``, ``3 x 10^5``, ``(101)_2``.

Each is looked for only where a character that it cannot do without is there.
"""

import re
from collections.abc import Callable

_Rewriting = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

_SMALL = r"\{?\s*([0-9]{1,4})\s*\}?"
_CHOSEN = r"(?:\\(?:mathrm|text|rm)\s*\{\s*C\s*\}|C)"
_ARRANGED = r"(?:\\(?:mathrm|text|rm)\s*\{\s*P\s*\}|P)"
_BINOMIAL = r"\\binom{\1}{\2}"

# Three times the same digit, or twice the same digits, and so on.
_AND_SO_ON: _Rewriting = (
    re.compile(r"\.([0-9]{0,20}?)(?:([0-9])\2{2,}|([0-9]{2,12}?)\3+)(?:\.\.\.|\\[lc]?dots)(?![0-9.])"),
    lambda match: rf".{match[1]}\overline{{{match[2] or match[3]}}}",
)
_DOTLESS: _Rewriting = (re.compile(r"\\([ij])math(?![A-Za-z])"), r"\1")

REWRITINGS: dict[str, tuple[_Rewriting, ...]] = {
    "...": (_AND_SO_ON,),
    "dots": (_AND_SO_ON,),
    "10": ((re.compile(r"(?<=[0-9])\s*[xX]\s*(?=10\s*\^)"), r"\\times "),),
    ":=": ((re.compile(r":="), "="),),
    "^": ((re.compile(r"\^(?<=[0-9]\^)\s*(?:o|\{\s*o\s*\})(?![A-Za-z0-9({])"), r"^\\circ "),),
    "_": (
        (re.compile(r"\(\s*([0-9][0-9A-F]*)\s*\)\s*_(?=\{?\(?[0-9])"), r"\1_"),
        (re.compile(r"(?<=[0-9A-F])_\{?\(([0-9]{1,2})\)\}?"), r"_{\1}"),
        (re.compile(rf"(?:\{{\s*\}}|(?<![A-Za-z0-9}}]))[_^]{_SMALL}\s*{_CHOSEN}\s*_{_SMALL}"), _BINOMIAL),
        (re.compile(rf"{_CHOSEN}_{_SMALL}\s*\^{_SMALL}"), _BINOMIAL),
        (
            re.compile(rf"(?:\{{\s*\}}|(?<![A-Za-z0-9}}]))[_^]{_SMALL}\s*{_ARRANGED}\s*_{_SMALL}"),
            r"\\frac{\1!}{(\1-\2)!}",
        ),
    ),
    "C(": ((re.compile(r"(?<![A-Za-z\\])C\(\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*\)"), _BINOMIAL),),
    "base": (
        (
            re.compile(
                r"(?<=[0-9])[\s~]*(?:\\text\s*\{)?\s*\(?(?:in\s+)?base(?:[\s\-}~]|\\[, ])*([0-9]{1,2})"
                r"(?:\s|\\[, ])*\)?\s*\}?"
            ),
            r"_{\1}",
        ),
    ),
    "math": (
        _DOTLESS,
        (
            re.compile(
                r"\\(?:hat|widehat|vec)\s*\{\s*\\(?:mathbf|boldsymbol|bm|mathrm|bf)\s*\{?\s*([A-Za-z])\s*\}?\s*\}"
                r"|\\(?:mathbf|boldsymbol|bm|mathrm|bf)\s*\{\s*\\(?:hat|widehat)\s*\{?\s*([A-Za-z])\s*\}?\s*\}"
            ),
            lambda match: rf"\hat{{{match[1] or match[2]}}}",
        ),
    ),
}
"""By what a text must contain."""


def respelled(text: str) -> str:
    """``text`` with these notations rewritten."""
    for needed, rewritings in REWRITINGS.items():
        if needed in text:
            for pattern, replacement in rewritings:
                text = pattern.sub(replacement, text)
    return text[1:].lstrip() if text[:1] == "=" and text[1:2] not in ("<", ">", "=") else text
