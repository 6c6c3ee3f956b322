"""Bounded sympy confirmation of what numeric evaluation could not refute.

Sympy objects are built node by node: it never receives a string from the answer, not even a variable's name.
"""

from collections.abc import Callable
from typing import Any

import sympy

from deltarl.reward import numeric
from deltarl.reward.limits import BITS_PER_DIGIT, MAX_DIGITS, MAX_FACTORIAL, TooLargeError
from deltarl.reward.tree import OPERATION_NAMES, Add, Const, Func, Mul, Node, Num, Pow, Sym, contains, free_symbols

_MAX_EXPANDED_EXPONENT = 20
_MAX_SIMPLIFIED_OPERATIONS = 120

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec, "csc": sympy.csc,
    "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "sinh": sympy.sinh, "cosh": sympy.cosh,
    "tanh": sympy.tanh, "arsinh": sympy.asinh, "arcosh": sympy.acosh, "artanh": sympy.atanh, "ln": sympy.log,
    "abs": sympy.Abs, "floor": sympy.floor, "ceil": sympy.ceiling, "factorial": sympy.factorial,
    "binom": sympy.binomial,
}  # fmt: skip
_CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "infinity": sympy.oo}


def confirm(pred: Node, gold: Node) -> bool:
    """Whether two scalars that agree numerically are equal.

    Decided by ``expand`` and ``simplify`` of the difference where they are affordable and conclusive. Otherwise by
    agreement at a second set of points, where a chance agreement to hundreds of digits is out of the question.

    Raises:
        TooLargeError: a number would exceed ``MAX_DIGITS`` digits.
    """
    if any(contains(node, Func, OPERATION_NAMES) for node in (pred, gold)):
        return numeric.agree(pred, gold, salt=1)
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
    return numeric.agree(pred, gold, salt=1)


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
