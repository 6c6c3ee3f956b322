"""Quantities in two units, ``5 ft 3 in``: one quantity in the smaller unit."""

from collections.abc import Sequence
from fractions import Fraction

from deltarl.reward.tree import Node, Num, Quantity
from deltarl.reward.units import conversion

_PAIRS = (
    ("ft", "in"), ("yd", "ft"), ("yd", "in"), ("mi", "yd"), ("mi", "ft"), ("lb", "oz"), ("week", "day"), ("day", "h"),
    ("day", "min"), ("h", "min"), ("h", "s"), ("min", "s"), ("km", "m"), ("m", "cm"), ("m", "mm"), ("cm", "mm"),
    ("kg", "g"), ("L", "mL"), ("dollar", "cent"),
)  # fmt: skip
"""Units that are used together, the larger one first."""


def compound(first: Node, second: Node) -> Quantity | None:
    """The sum of two quantities if they are written as one: the second is less than one of the first's units."""
    match first, second:
        case Quantity(Num(large, None), unit), Quantity(Num(small, decimals), smaller_unit):
            factor = conversion(unit, smaller_unit)
            if factor is None or not 0 <= small < factor or not _go_together(unit, smaller_unit):
                return None
            return Quantity(Num(large * factor + (small if large >= 0 else -small), decimals), smaller_unit)
    return None


def with_compounds(items: Sequence[Node]) -> list[Node]:
    """``5 ft, 3 in`` in a list as one quantity."""
    found: list[Node] = []
    for item in items:
        both = compound(found[-1], item) if found else None
        if both is None:
            found.append(item)
        else:
            found[-1] = both
    return found


def _go_together(unit: str, smaller: str) -> bool:
    one = Fraction(1)
    return any(conversion(unit, large) == one and conversion(smaller, small) == one for large, small in _PAIRS)
