"""A constant as a float, without sympy or mpmath: to put numbers in order, never to call them equal."""

import math
from collections.abc import Callable

from deltarl.reward.tree import Add, Const, Func, Mul, Node, Num, Pow

_CONSTANTS = {"pi": math.pi, "e": math.e, "infinity": math.inf}
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "sin": math.sin, "cos": math.cos, "tan": math.tan, "arcsin": math.asin, "arccos": math.acos, "arctan": math.atan,
    "sinh": math.sinh, "cosh": math.cosh, "tanh": math.tanh, "ln": math.log, "abs": abs,
}  # fmt: skip


def approximate(node: Node) -> float | None:
    """The value of a real constant, infinite ones included; None where it has none or is not one."""
    try:
        value = _value(node)
    except (ValueError, OverflowError, ZeroDivisionError, _NoValueError):
        return None
    return None if math.isnan(value) else value


class _NoValueError(Exception):
    pass


def _value(node: Node) -> float:
    match node:
        case Num(value):
            return float(value)
        case Const(name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case Add(terms):
            return sum(_value(term) for term in terms)
        case Mul(factors):
            return math.prod(_value(factor) for factor in factors)
        case Pow(base, exponent):
            return math.pow(_value(base), _value(exponent))
        case Func(name, (arg,)) if name in _FUNCTIONS:
            return _FUNCTIONS[name](_value(arg))
    raise _NoValueError
