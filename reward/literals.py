"""Numbers as they are written: separators, repeating decimals, powers of ten."""

import re
from fractions import Fraction
from functools import lru_cache

from deltarl.reward.limits import MAX_DIGITS, MAX_LITERAL_DIGITS, LimitError
from deltarl.reward.tree import Num

_FRACTION = r"(?:\.[0-9]*(?:\\(?:overline|bar|dot)(?:\{[0-9]+\}|[ ]?[0-9])|\([0-9]+\))|\.[0-9]+)"
_CYCLE = re.compile(r"\\(?:overline|bar|dot)\{? ?([0-9]+)\}?")
_POWER_OF_TEN = r"(?:[eE][+-]?[0-9]{1,5}(?![0-9.]))"


def _number_pattern(separators: str) -> re.Pattern[str]:
    # Groups of three only, and not where one more comma-digit follows (1,234,5 is a list).
    grouped = rf"[1-9][0-9]{{0,2}}(?:(?:{separators})[0-9]{{3}})+(?![0-9]|,[0-9])"
    return re.compile(rf"(?:{grouped}|[0-9]+){_FRACTION}?{_POWER_OF_TEN}?|{_FRACTION}{_POWER_OF_TEN}?")


NUMBER = _number_pattern(r",\\! ?|,| ?\{, ?\}|\\[, ]|~| ")
NUMBER_IN_BRACKETS = _number_pattern(r",\\! ?| ?\{, ?\}|\\[, ]|~| ")
"""Between brackets a bare comma separates elements."""

_SEPARATOR = re.compile(r" ?\{, ?\}|\\[, ]|,\\! ?|[ ,~]")


def without_separators(literal: str) -> str:
    """``1,234`` and ``1\\,234`` as ``1234``."""
    return literal if literal.isdigit() else _SEPARATOR.sub("", literal)


@lru_cache(maxsize=4_096)
def number(literal: str) -> Num:
    """The exact value of a number token such as ``12``, ``3.50``, ``1.5e-7`` or ``0.1(6)``.

    Raises:
        LimitError: more than ``MAX_LITERAL_DIGITS`` digits, or a power of ten beyond ``MAX_DIGITS``.
    """
    if len(literal) > MAX_LITERAL_DIGITS:
        raise LimitError(f"a number of more than {MAX_LITERAL_DIGITS} digits")
    if literal.isdigit():
        return Num(Fraction(int(literal)))
    literal = _CYCLE.sub(r"(\1)", literal)
    mantissa, _, power = literal.lower().partition("e")
    whole, _, places = mantissa.partition(".")
    places, repeats, cycle = places.partition("(")
    shift = int(power or 0)
    if abs(shift) > MAX_DIGITS:
        raise LimitError(f"a power of ten beyond {MAX_DIGITS}")
    value = Fraction(int((whole + places) or 0), 10 ** len(places))
    if repeats:
        cycle = cycle.rstrip(")")
        value += Fraction(int(cycle), 10 ** len(places) * (10 ** len(cycle) - 1))
    if shift:
        value *= Fraction(10) ** shift
    exact = not places or bool(repeats)
    return Num(value, None if exact else len(places) - shift)
