"""Values as floats with a bound on their error, without sympy or mpmath: real ones, or complex where there is an i.

They put numbers in order and tell apart, in this process and in microseconds, most expressions that are not equal. They
never call two equal.
"""

import math
import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from deltarl.reward.tree import Add, Const, Func, Mul, Node, Num, Pow, Sym, contains, free_symbols

_EPSILON = 1e-15
_SAFETY = 16.0
_POINTS = 6
_REACHES = (3.0, 40.0)
"""Up to where the variables lie: near, and where nothing has a value there further out, as the root of x - 5 has."""
_SEED = 20_261
_HUGE = 1e150

_CONSTANTS = {"pi": math.pi, "e": math.e}
_IMAGINARY = frozenset({"i"})
# Function, and how much of an error in its argument reaches its value.
_FUNCTIONS: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "sin": (math.sin, lambda x: 1.0),
    "cos": (math.cos, lambda x: 1.0),
    "tan": (math.tan, lambda x: 1.0 + math.tan(x) ** 2),
    "sinh": (math.sinh, math.cosh),
    "cosh": (math.cosh, math.cosh),
    "tanh": (math.tanh, lambda x: 1.0),
    "arctan": (math.atan, lambda x: 1.0),
    "arcsin": (math.asin, lambda x: 1.0 / math.sqrt(1.0 - x * x)),
    "arccos": (math.acos, lambda x: 1.0 / math.sqrt(1.0 - x * x)),
    "ln": (math.log, lambda x: 1.0 / x),
    "abs": (abs, lambda x: 1.0),
}


class _NoValueError(Exception):
    pass


class _Value(NamedTuple):
    """``at`` is complex only where the expressions have an i."""

    at: Any
    error: float


def approximate(node: Node) -> float | None:
    """The value of a real constant, infinite ones included; None where it has none or is not one."""
    match node:
        case Const("infinity"):
            return math.inf
        case Mul((Num(sign), Const("infinity"))):
            return math.copysign(math.inf, sign)
    found = None if _is_complex(node) else _evaluated(node, {})
    return None if found is None else found.at


def differ(left: Node, right: Node) -> bool:
    """Whether two scalars certainly differ: at one of a few points where both have a value, or as constants."""
    imaginary = _is_complex(left) or _is_complex(right)
    names = sorted(free_symbols(left) | free_symbols(right))
    for reach in _REACHES if names else _REACHES[:1]:
        compared = False
        for values in _points(len(names), reach):
            point = dict(zip(names, values, strict=True))
            a = _evaluated(left, point, imaginary)
            b = _evaluated(right, point, imaginary) if a is not None else None
            if a is not None and b is not None:
                if abs(a.at - b.at) > _SAFETY * (a.error + b.error):
                    return True
                compared = True
        if compared:
            break
    return False


@lru_cache(maxsize=32)
def _points(dimensions: int, reach: float) -> list[list[float]]:
    rng = random.Random(_SEED)
    return [[rng.uniform(0.1, reach) for _ in range(dimensions)] for _ in range(_POINTS if dimensions else 1)]


def within(node: Node, center: Fraction, radius: Fraction) -> bool | None:
    """Whether a constant is real and lies within ``radius`` of ``center``; None where that cannot be told."""
    found = None if free_symbols(node) else _evaluated(node, {}, _is_complex(node))
    if found is None or abs(center) > _HUGE:
        return None
    margin = float(radius) - abs(found.at - float(center))
    if isinstance(found.at, complex) and abs(found.at.imag) <= _SAFETY * found.error:
        return None
    if abs(margin) <= _SAFETY * (found.error + _EPSILON * abs(float(center))):
        return None
    return margin > 0


def _is_complex(node: Node) -> bool:
    return contains(node, Const, _IMAGINARY)


def _evaluated(node: Node, point: Mapping[str, float], imaginary: bool = False) -> _Value | None:
    try:
        value = _value(node, point, imaginary)
    except (ValueError, OverflowError, ZeroDivisionError, _NoValueError):
        return None
    return value if math.isfinite(abs(value.at)) and math.isfinite(value.error) else None


def _value(node: Node, point: Mapping[str, float], imaginary: bool) -> _Value:
    # Not by match, which takes twice as long.
    if isinstance(node, Num):
        at = float(node.value)
        return _Value(at, _EPSILON * abs(at))
    if isinstance(node, Mul):
        return _product([_value(factor, point, imaginary) for factor in node.factors])
    if isinstance(node, Pow):
        base, exponent = _value(node.base, point, imaginary), _value(node.exponent, point, imaginary)
        return _complex_power(base, exponent) if imaginary else _power(base, exponent)
    if isinstance(node, Sym) and node.name in point:
        return _Value(point[node.name], 0.0)
    if isinstance(node, Add):
        parts = [_value(term, point, imaginary) for term in node.terms]
        size = sum(abs(part.at) for part in parts) * (1 + len(parts) if imaginary else 1)
        at = sum(part.at for part in parts) if imaginary else math.fsum(part.at for part in parts)
        return _Value(at, sum(part.error for part in parts) + _EPSILON * size)
    if isinstance(node, Const) and node.name == "i" and imaginary:
        return _Value(1j, 0.0)
    if isinstance(node, Const) and node.name in _CONSTANTS:
        return _Value(_CONSTANTS[node.name], _EPSILON * _CONSTANTS[node.name])
    if isinstance(node, Func) and node.name in _FUNCTIONS and len(node.args) == 1:
        function, slope = _FUNCTIONS[node.name]
        inner = _value(node.args[0], point, imaginary)
        if isinstance(inner.at, complex):
            raise _NoValueError
        at = function(inner.at)
        return _Value(at, inner.error * slope(inner.at) + _EPSILON * max(abs(at), 1e-300))
    raise _NoValueError


def _product(parts: list[_Value]) -> _Value:
    at, error = 1.0, 0.0
    for part in parts:
        error = abs(at) * part.error + abs(part.at) * error + error * part.error
        at *= part.at
        error += _EPSILON * abs(at)
    return _Value(at, error)


def _complex_power(base: _Value, exponent: _Value) -> _Value:
    """The principal value, unless the base may lie on either side of the cut along the negative numbers."""
    if isinstance(exponent.at, complex) or base.at == 0.0:
        raise _NoValueError
    if not isinstance(base.at, complex) and base.at > 0.0:
        return _power(base, exponent)  # real, so that it can be an exponent in turn: the cube root is a power of 1/3
    at = complex(base.at)
    if exponent.at != int(exponent.at) and at.real <= 0 and abs(at.imag) <= _SAFETY * base.error:
        raise _NoValueError
    relative = base.error / abs(at)
    if relative > 1e-3 or exponent.at > _HUGE:
        raise _NoValueError
    value = at**exponent.at
    growth = abs(exponent.at) * relative + (abs(math.log(abs(at))) + math.pi) * exponent.error
    return _Value(value, abs(value) * (growth + _EPSILON * (4.0 + abs(exponent.at))) * 2.0)


def _power(base: _Value, exponent: _Value) -> _Value:
    at = math.pow(base.at, exponent.at)
    if base.at == 0.0:
        if base.error:
            raise _NoValueError
        return _Value(at, 0.0)
    relative = base.error / abs(base.at)
    if relative > 1e-3:
        raise _NoValueError  # too close to zero for a linear estimate
    growth = abs(exponent.at) * relative
    if exponent.error:
        growth += abs(math.log(abs(base.at))) * exponent.error
    return _Value(at, abs(at) * (growth + _EPSILON) * 2.0)
