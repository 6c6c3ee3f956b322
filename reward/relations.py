"""Equations, inequalities and unions from their parts, as the parser finds them."""

import re
from collections.abc import Sequence

from deltarl.reward.approximate import approximate
from deltarl.reward.limits import ParseError
from deltarl.reward.tree import (
    ZERO,
    Const,
    Difference,
    Equation,
    Func,
    Inequality,
    Interval,
    IntervalUnion,
    Junction,
    Node,
    Num,
    Residue,
    Scalar,
    Seq,
    Sym,
    Text,
    contains,
    negate,
)

RELATIONS = frozenset(["<", "<=", ">", ">=", "ne"])

_ROUGHLY, _BY_HAND = 0.02, 0.005
_MOST_BITS, _MOST_PLACES = 1_000, 300
_TURNED = {">": "<", ">=": "<=", "ne": "ne"}
_MINUS_INFINITY = negate(Const("infinity"))
REAL_LINE = Interval(_MINUS_INFINITY, Const("infinity"), True, True)
REAL_SETS = {
    "real numbers": REAL_LINE,
    "all real numbers": REAL_LINE,
    "all reals": REAL_LINE,
    "set of real numbers": REAL_LINE,
    "set of all real numbers": REAL_LINE,
    "positive real numbers": Interval(ZERO, Const("infinity"), True, True),
    "all positive real numbers": Interval(ZERO, Const("infinity"), True, True),
    "negative real numbers": Interval(_MINUS_INFINITY, ZERO, True, True),
    "all negative real numbers": Interval(_MINUS_INFINITY, ZERO, True, True),
}
_EXISTENCE = re.compile(r"^(?:there )?(?:is|are|exists?) | exists?$")
_EMPTY_SETS = frozenset({
    "no solution", "no solutions", "empty set", "no real solution", "no real solutions", "no real roots", "no roots",
    "no integer solutions",
})  # fmt: skip


def set_named(words: str) -> Node | None:
    """The set of real numbers that has a name: "real numbers", "no solution"."""
    core = _EXISTENCE.sub("", words)
    return Seq("set", ()) if core in _EMPTY_SETS else REAL_SETS.get(words)


def relation(sides: Sequence[Node], ops: Sequence[str]) -> Node:
    """The equation or inequality of ``sides`` with ``ops`` between them, turned so that all point to the right.

    Raises:
        ParseError: equality and inequality, or both directions, in one chain.
    """
    sides, ops = list(sides), list(ops)
    if set(ops) == {"="}:
        return Equation(tuple(sides))
    if "=" in ops:
        raise ParseError("equalities and inequalities in one chain")
    if any(op in (">", ">=") for op in ops):
        if any(op in ("<", "<=") for op in ops):
            raise ParseError("an inequality that changes direction")
        return Inequality(tuple(sides[::-1]), tuple(_TURNED[op] for op in reversed(ops)), turned=True)
    if ops == ["ne"] and not isinstance(sides[0], Sym):
        sides = sides[::-1]
    return Inequality(tuple(sides), tuple(ops))


def approximation(sides: Sequence[Node], rounded: Node) -> Node:
    r"""What ``\approx`` between ``sides`` and ``rounded`` says: the value of a name, or another way to write a value.

    Raises:
        ParseError: the two are not close.
    """
    exact = sides[-1]
    if len(sides) == 1 and not contains(exact, (Const, Interval)) and contains(exact, Sym) and not contains(exact, Num):
        return Equation((exact, rounded))
    left, right = approximate(exact), approximate(rounded)
    if left is not None and right is not None and not abs(left - right) <= _precision(exact, rounded, left):
        raise ParseError("an approximation that is wrong")
    return relation(sides, ["="] * (len(sides) - 1)) if len(sides) > 1 else exact


def _precision(exact: Node, rounded: Node, value: float) -> float:
    """How far what ``exact`` is rounded to may be from its ``value``: a unit in the last place.

    An expression is worked out by hand, and not as exactly.
    """
    if not isinstance(exact, Num):
        return max(_BY_HAND * abs(value), _unit_in_last_place(rounded, value))
    return _unit_in_last_place(rounded, value)


def _unit_in_last_place(rounded: Node, exact: float) -> float:
    match rounded:
        case Num(value, int(places)):
            unit = 10.0 ** min(-places, _MOST_PLACES)
            return min(unit, _ROUGHLY * abs(exact) or unit)
        case Num(value) if value.denominator == 1 and value:
            digits = str(abs(value.numerator)) if value.numerator.bit_length() < _MOST_BITS else ""
            unit = 10.0 ** (len(digits) - len(digits.rstrip("0")))
            return max(unit / 2, min(unit, _ROUGHLY * abs(exact)))
    return _ROUGHLY * abs(exact)


def joined(items: Sequence[Node], words: set[str]) -> Node:
    """Several elements of an answer with the separators ``words`` between them."""
    # "k in Z" says what k is; it is no part of the answer.
    items = [item for item in items if not _is_declaration(item)] or items
    if len(items) == 1:
        return items[0]
    if all(isinstance(item, Inequality) for item in items):
        excludes = any(isinstance(item, Inequality) and item.ops == ("ne",) for item in items)
        if words <= {"and"} or (excludes and "or" not in words):
            return Junction("and", tuple(items))
        if "or" in words and "and" not in words:
            return Junction("or", tuple(items))
    return Seq("list", tuple(items))


def union(parts: Sequence[Node]) -> IntervalUnion:
    """The union of intervals and sets; a pair in round brackets is an open interval."""
    return IntervalUnion(tuple(map(_as_interval, parts)))


def without(base: Node, removed: Node) -> Difference:
    """One set without another; a pair in round brackets is an open interval."""
    match base:
        case Seq("tuple", (_, _)):
            base = _as_interval(base)
    return Difference(base, removed)


def remainder(value: Scalar, modulus: Scalar) -> Node:
    r"""``value \bmod modulus``: an operation to be done, unless there is nothing left to do."""
    match value, modulus:
        case Num(left), Num(right) if 0 <= left < right:
            return Residue(value, modulus)
    return Func("mod", (value, modulus))


def _as_interval(node: Node) -> Node:
    match node:
        case Seq("tuple", (low, high)):
            return Interval(low, high, low_open=True, high_open=True)
        case Interval() | Seq("set", _) | IntervalUnion():
            return node
    raise ParseError("a union of something other than intervals and sets")


def _is_declaration(item: Node) -> bool:
    """``k in Z``."""
    match item:
        case Equation((Sym(), Text(words))):
            return words == "integers"
        case Equation((Sym(), Interval() as domain)):
            return domain == REAL_LINE
    return False
