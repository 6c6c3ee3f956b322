r"""Operators that are not worked out here: integrals, limits, derivatives. They only name what they are equal to."""

import re

_D = r"(?:d|\\(?:mathrm|text|rm)\s*\{\s*d\s*\}|\\partial)"
_POWER = r"(?:\s*\^\s*\{?[2-9n]\}?)?"
DERIVATIVE = re.compile(
    rf"\\[dt]?frac\s*\{{\s*{_D}(?P<power>{_POWER})\s*(?P<of>[A-Za-z]?)\s*\}}\s*\{{\s*{_D}\s*(?P<by>[A-Za-z]|\\[a-z]+){_POWER}\s*\}}"
)
DERIVATIVE_BY = "/d"
r"""``\frac{dy}{dx}``, and ``\frac{d}{dx}`` of what follows."""

_UNKNOWN = r"\\(?:i{1,3}nt|oint|lim(?:sup|inf)?|sup|inf|det)(?![A-Za-z])"
_UNSOLVED = re.compile(
    rf"{_UNKNOWN}|\\(?:sum|prod|gcd|lcm|max|min|bmod)(?![A-Za-z])|{DERIVATIVE.pattern}"
    r"|(?<![A-Za-z])(?:int|sum|gcd|lcm|max|min|det|lim)\}?\s*(?:[_({|]|\\[{l])"
)
_BRACE_OR_EQUALS = re.compile("[{}=]")
_BEGINS = re.compile(rf"[\s$]*(?:\\displaystyle)?\s*(?:{_UNKNOWN}|{DERIVATIVE.pattern})")


def names_operator(answer: str) -> bool:
    """Whether a text that cannot be read leaves an integral, limit, supremum or the like to work out."""
    return _UNSOLVED.search(sides(answer)[-1]) is not None


def worked_out(text: str) -> list[str]:
    r"""The sides behind the first of ``\int_0^1 2x\,dx = 1``; none of another text."""
    return sides(text)[1:] if _BEGINS.match(text) else []


def sides(text: str) -> list[str]:
    """The parts between equals signs that are not within braces, as that of a sum's index is."""
    depth, start = 0, 0
    found = []
    for match in _BRACE_OR_EQUALS.finditer(text):
        char = match.group()
        depth += (char == "{") - (char == "}")
        if char == "=" and depth == 0:
            found.append(text[start : match.start()])
            start = match.end()
    return [*found, text[start:]]
