"""When a value matches a gold answer that was written as a rounded decimal. Never an absolute tolerance."""

from dataclasses import dataclass
from fractions import Fraction

from deltarl.reward.limits import MAX_DIGITS
from deltarl.reward.tree import Mul, Node, Num, Pow

_ENOUGH_DIGITS = 3
"""Significant digits from which a decimal counts as a rounded value rather than a short exact one."""

_ROUNDING = 40
"""Rounding a value changes it by more than half a unit over this, but for one value in so many."""

_LONG_DIGITS = 12
_MOST_PLACES = 3


@dataclass(frozen=True, slots=True)
class Decimal:
    """A value written with ``places`` decimal places (negative: rounded to tens, hundreds, ...)."""

    value: Fraction
    places: int

    @property
    def half_unit(self) -> Fraction:
        """Half a unit in the last place."""
        return Fraction(1, 2) / Fraction(10) ** self.places

    @property
    def may_be_rounded(self) -> bool:
        """Whether an exact value near it can be meant: not by 0.5, which is a half."""
        return abs(self.value) >= 10 * 2 * self.half_unit

    @property
    def looks_rounded(self) -> bool:
        return abs(self.value) >= 10 ** (_ENOUGH_DIGITS - 1) * 2 * self.half_unit


def as_decimal(node: Node) -> Decimal | None:
    r"""``3.14``, or ``1.5 \times 10^{-7}``, as a rounded decimal; None for what is written exactly."""
    match node:
        case Num(value, int(places)):
            return Decimal(value, places)
        case Mul((Num(value, int(places)), Pow(Num(base), Num(exponent)))):
            if base == 10 and exponent.denominator == 1 and abs(exponent) <= MAX_DIGITS:
                return Decimal(value * base ** int(exponent), places - int(exponent))
        case Mul((Num(value, None), Num(factor, int(places)))) if abs(value) == 1:
            return Decimal(value * factor, places)
    return None


def rounds_to(pred: Node, value: int | Fraction, gold: Decimal) -> bool:
    """Whether ``pred``, whose exact value is ``value``, is an acceptable way to write the decimal ``gold``.

    Half a unit in the last place of whichever is written with fewer places:

    * An exact value that is no decimal, such as 1/3, is accepted within half a unit in the last place of a gold of two
      significant digits or more. If it would be a short decimal, 1/8 say, it must be what a gold of three digits or
      more is the rounded value of: with two more places, and not as close to gold as if it had been gold but for a
      slip (201/64 for 3.14; not 31/4 or 7750001/1000000 for 7.7).
    * A decimal with fewer places, or a whole number or percentage, must be gold rounded to those places and keep three
      significant digits: 657 for 656.8.
    * A decimal with as many places or more is another number unless it is gold: no 12.5321 for 12.5.
    """
    distance = abs(value - gold.value)
    if distance == 0:
        return True
    written = as_decimal(pred) or _as_whole(pred, gold.places)
    if written is not None:
        return written.places < gold.places and distance <= written.half_unit and written.looks_rounded
    if distance > gold.half_unit:
        return False
    if not _terminates(value):
        return gold.may_be_rounded
    further = (value * Fraction(10) ** (gold.places + 1)).denominator != 1
    return gold.looks_rounded and further and distance * _ROUNDING >= gold.half_unit


def _terminates(value: int | Fraction) -> bool:
    """Whether ``value`` is a decimal of a few places."""
    return (value * 10**_LONG_DIGITS).denominator == 1


def rounds_at_length(pred: Node, value: int | Fraction) -> bool:
    """Whether ``pred`` is the exact ``value`` as a computer prints it: a decimal of twelve digits or more."""
    written = as_decimal(pred)
    if written is None or value.denominator == 1 or written.value.denominator == 1:
        return False  # whole numbers are compared exactly
    if abs(written.value) < 10 ** (_LONG_DIGITS - 1) * 2 * written.half_unit:
        return False
    return abs(written.value - value) <= written.half_unit


def _as_whole(node: Node, most: int) -> Decimal | None:
    """A literal written without a decimal point, such as 300 or 118 %, with the places it has (fewer than ``most``)."""
    match node:
        case Num(value, None):
            for places in range(min(most, _MOST_PLACES)):
                if (value * 10**places).denominator == 1:
                    return Decimal(value, places)
    return None
