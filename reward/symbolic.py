"""Bounded sympy confirmation of what numeric evaluation could not refute.

Sympy objects are built node by node: it never receives a string from the answer, not even a variable's name.
"""

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import sympy

from deltarl.reward import numeric
from deltarl.reward.limits import BITS_PER_DIGIT, MAX_DIGITS, MAX_FACTORIAL, TooLargeError
from deltarl.reward.tree import (
    OPERATION_NAMES,
    Add,
    Const,
    Func,
    Mul,
    Node,
    Num,
    Pow,
    Sym,
    children,
    contains,
    free_symbols,
)

_MAX_EXPANDED_EXPONENT = 20
_MAX_SIMPLIFIED_OPERATIONS = 120

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec, "csc": sympy.csc,
    "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "sinh": sympy.sinh, "cosh": sympy.cosh,
    "tanh": sympy.tanh, "arsinh": sympy.asinh, "arcosh": sympy.acosh, "artanh": sympy.atanh, "ln": sympy.log,
    "abs": sympy.Abs, "floor": sympy.floor, "ceil": sympy.ceiling, "factorial": sympy.factorial,
    "binom": sympy.binomial,
}  # fmt: skip
_MAX_DEGREE = 8
_ROOT_DIGITS = 40
_FARTHEST = Fraction(10**12)
_STEPS = (Fraction(1, 3), Fraction(7), Fraction(211, 4))
_SHARES = (Fraction(3, 11), Fraction(5, 11), Fraction(9, 13))
_NOT_SMOOTH = frozenset({"abs", "floor", "ceil", "max", "min"})
_CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "infinity": sympy.oo}


def confirm(pred: Node, gold: Node) -> bool:
    """Whether two scalars that agree numerically are equal.

    Decided by ``expand`` and ``simplify`` of the difference where they are affordable and conclusive. Otherwise by
    agreement at a second set of points, where a chance agreement to hundreds of digits is out of the question: unless
    there are steps or corners, which no sample need hit. What is not decided is not equal.

    Raises:
        TooLargeError: a number would exceed ``MAX_DIGITS`` digits.
    """
    proves = not any(contains(node, Func, _NOT_SMOOTH) for node in (pred, gold))
    if any(contains(node, Func, OPERATION_NAMES) for node in (pred, gold)):
        return proves and numeric.agree(pred, gold, salt=1)
    builder = _Builder(free_symbols(pred) | free_symbols(gold))
    difference = builder.build(pred) - builder.build(gold)
    if difference == 0:
        return True
    if _affordable(difference):
        difference = sympy.expand(difference)
        if difference != 0 and difference.count_ops() <= _MAX_SIMPLIFIED_OPERATIONS:
            difference = sympy.simplify(difference)
        if difference.is_number and difference.is_zero is not None:
            return bool(difference.is_zero)
    points = _points_between_corners(pred, gold, builder)
    between = None if points is None else numeric.agree_at_all(pred, gold, points)
    # A root may have a corner as well, that of a square.
    return between is not False and numeric.agree(pred, gold, salt=1) if proves else between is True


def _points_between_corners(pred: Node, gold: Node, builder: "_Builder") -> list[dict[str, Fraction]] | None:
    """Points in every interval in which no absolute value has a corner, and no root either; None if not all are known.

    They are where the bars and the roots are of quotients of polynomials in one variable; others have any value.
    """
    insides = [*_insides(pred), *_insides(gold)]
    names = frozenset().union(*map(free_symbols, insides))
    if len(names) != 1 or any(contains(node, Func, _NOT_SMOOTH - {"abs"}) for node in (pred, gold)):
        return None
    (name,) = names
    variable = builder.symbols[name]
    corners: set[Fraction] = set()
    for inside in insides:
        for part in sympy.fraction(sympy.together(builder.build(inside))):
            polynomial = part.as_poly(variable, domain="QQ") if part.is_polynomial(variable) else None
            if polynomial is None or polynomial.degree() > _MAX_DEGREE:
                return None
            if polynomial.degree() > 0:
                corners |= set(map(_rational, sympy.Poly(polynomial.sqf_part()).real_roots()))
    ends = sorted(corners) or [Fraction(0)]
    if any(abs(end) > _FARTHEST for end in ends) or any(high - low < 1 / _FARTHEST for low, high in pairwise(ends)):
        return None  # not far from the errors of the roots
    values = [ends[0] - step for step in _STEPS] + [ends[-1] + step for step in _STEPS]
    for low, high in pairwise(ends):
        values += [low + (high - low) * share for share in _SHARES]
    others = sorted(builder.symbols.keys() - names)
    return [
        {name: value} | {other: Fraction(1009 + 7 * at, 97 + index) for index, other in enumerate(others)}
        for at, value in enumerate(values)
    ]


def _rational(root: Any) -> Fraction:
    value = sympy.Rational(root if root.is_Rational else root.evalf(_ROOT_DIGITS))
    return Fraction(int(value.p), int(value.q))


def _insides(node: Node) -> list[Node]:
    """What the absolute values and the roots in a tree that has variables are of."""
    found: list[Node] = []
    match node:
        case Func("abs", (inner,)):
            found.append(inner)
        case Pow(base, Num(exponent)) if exponent.denominator > 1:
            found.append(base)
    for child in children(node):
        found += _insides(child)
    return [inside for inside in found if free_symbols(inside)]


def _affordable(expression: Any) -> bool:
    """Whether expanding cannot blow up: no sum to a high power."""
    return all(
        not power.exp.is_Integer or abs(power.exp) <= _MAX_EXPANDED_EXPONENT or power.base.is_number
        for power in expression.atoms(sympy.Pow)
    )


class _Builder:
    def __init__(self, names: frozenset[str]) -> None:
        # Positional names: nothing the model wrote reaches sympy as text.
        self.symbols = {name: sympy.Symbol(f"v{index}", real=True) for index, name in enumerate(sorted(names))}

    def build(self, node: Node) -> Any:
        match node:
            case Num(value):
                return sympy.Rational(value.numerator, value.denominator)
            case Sym(name):
                return self.symbols[name]
            case Const(name):
                return _CONSTANTS[name]
            case Add(terms):
                return sympy.Add(*(self.build(term) for term in terms))
            case Mul(factors):
                return sympy.Mul(*(self.build(factor) for factor in factors))
            case Pow(base, exponent):
                return self.power(self.build(base), self.build(exponent))
            case Func(name, args):
                return self.apply(name, [self.build(arg) for arg in args])
        raise TypeError(f"a {type(node).__name__} is not an expression")

    def power(self, base: Any, exponent: Any) -> Any:
        if base.is_Rational and exponent.is_Rational:
            bits = max(base.p.bit_length(), base.q.bit_length())
            # An integer, because sympy would sooner overflow a float than compare with one.
            if bits * abs(exponent.p) > int(MAX_DIGITS * BITS_PER_DIGIT) * exponent.q:
                raise TooLargeError
        return sympy.Pow(base, exponent)

    def apply(self, name: str, args: list[Any]) -> Any:
        if name in ("factorial", "binom") and any(arg.is_number and not abs(arg) <= MAX_FACTORIAL for arg in args):
            raise TooLargeError
        return _FUNCTIONS[name](*args)
