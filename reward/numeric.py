"""High-precision evaluation at fixed pseudo-random points: refutes almost every wrong expression cheaply.

Uses mpmath's global precision, so it is for one thread at a time (a worker process).
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from mpmath import mp

from deltarl.reward.decimals import Decimal
from deltarl.reward.limits import BITS_PER_DIGIT, MAX_DIGITS, MAX_FACTORIAL, TooLargeError, UndefinedError
from deltarl.reward.tree import BOUND, Add, Const, Func, Mul, Node, Num, Pow, Sym, children, contains, free_symbols

_POINTS = 8
_TRIES = 64
_SEED = 20_251
_DIGITS = (50, 150, 450)
_MAX_TERMS = 1_000
_FAR_DIGITS = 40
_MAX_MAGNITUDE = int(MAX_DIGITS * BITS_PER_DIGIT)

_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "cot": mp.cot, "sec": mp.sec, "csc": mp.csc, "arcsin": mp.asin,
    "arccos": mp.acos, "arctan": mp.atan, "sinh": mp.sinh, "cosh": mp.cosh, "tanh": mp.tanh,
    "arsinh": mp.asinh, "arcosh": mp.acosh, "artanh": mp.atanh, "ln": mp.ln,
}  # fmt: skip

_OF_INTEGERS = frozenset({"factorial", "binom", "gcd", "lcm", "mod", "sum", "prod"})


def agree(pred: Node, gold: Node, salt: int = 0) -> bool:
    """Whether two scalars agree at every one of ``_POINTS`` points where both are defined.

    Real arithmetic first: a point outside either's real domain is passed over. Where the imaginary unit occurs, or no
    real domain is found, complex principal values are compared. ``salt`` selects other points.
    """
    symbols = sorted((free_symbols(pred) | free_symbols(gold)) - {BOUND.name})
    integers = any(contains(node, Func, _OF_INTEGERS) for node in (pred, gold))
    steps = any(contains(node, Func, frozenset({"floor", "ceil"})) for node in (pred, gold))
    imaginary = any(contains(node, Const, frozenset({"i"})) for node in (pred, gold))
    reach = math.ceil(max(_largest(pred), _largest(gold)))
    for real in (False,) if imaginary else (True, False):
        conclusive = 0
        for point, far in _points(symbols, integers, steps, salt, reach):
            try:
                if not _agree_at(pred, gold, point, real):
                    return False
            except UndefinedError:
                continue
            except TooLargeError:
                if far:
                    continue
                raise
            conclusive += 1
            if conclusive == _POINTS or not symbols:
                return True
    return False


def agree_at_all(pred: Node, gold: Node, points: Sequence[Mapping[str, Fraction]]) -> bool | None:
    """Whether two real scalars agree at every one of some points where both are defined; None if there is none.

    With an absolute value in gold, ``pred`` must be defined wherever gold is: ``\\ln x`` is not ``\\ln |x|``.
    """
    conclusive = 0
    needs_domain = contains(gold, Func, frozenset({"abs"}))
    for point in points:
        try:
            if not _agree_at(pred, gold, point, real=True):
                return False
        except UndefinedError:
            if needs_domain and _is_defined_at(gold, point):
                return False
            continue
        conclusive += 1
    return True if conclusive else None


def matches_decimal(pred: Node, gold: Decimal) -> bool:
    """Whether a constant such as ``16/\\pi`` lies within half a unit in gold's last place."""
    if free_symbols(pred) or not gold.may_be_rounded:
        return False
    with mp.workdps(_DIGITS[-1]):
        try:
            value = _Evaluator({}, real=not contains(pred, Const, frozenset({"i"}))).value(pred)
        except UndefinedError:
            return False
        return mp.im(value) == 0 and abs(mp.re(value) - _rational(gold.value)) <= _rational(gold.half_unit)


def _largest(node: Node) -> Fraction:
    """The largest number that is written in a tree, as itself or as a power."""
    match node:
        case Num(value):
            return abs(value)
        case Pow(Num(base), Num(exponent)) if exponent.denominator == 1 and 0 < exponent <= _FAR_DIGITS:
            return abs(base) ** int(exponent)
    return max((_largest(child) for child in children(node)), default=Fraction(1))


def _points(
    symbols: list[str], integers: bool, steps: bool, salt: int, reach: int
) -> Iterator[tuple[dict[str, Fraction], bool]]:
    """Points, and whether they are far: well beyond ``reach``, so that ``|x + 500|`` is not ``x + 500``."""
    if not symbols:
        yield {}, False
        return
    rng = random.Random(_SEED + salt)
    for attempt in range(_TRIES):
        if attempt % 4 == 2 and not integers:
            sign = -1 if attempt % 8 == 2 else 1
            yield {name: Fraction(sign * reach * rng.randint(10, 1_000)) for name in symbols}, True
            continue
        # Every second point is positive, so that roots and logarithms find their domain.
        low = 1 if integers or attempt % 2 else -400
        high, scale = (30, 1) if integers else (400, 101)
        if steps and attempt % 4 < 3:
            scale = (1, 2, 3)[attempt % 4]  # where steps are
        yield {name: Fraction(rng.randint(low, high), scale) for name in symbols}, False


def _agree_at(pred: Node, gold: Node, point: Mapping[str, Fraction], real: bool) -> bool:
    """Whether the difference is rounding noise: noise shrinks with the working precision, a real difference does not.

    This needs no tolerance, so it also separates 10^-30 from 2 * 10^-30.
    """
    differences = []
    for digits in _DIGITS:
        with mp.workdps(digits):
            evaluator = _Evaluator(point, real)
            differences.append(abs(evaluator.value(pred) - evaluator.value(gold)))
        if len(differences) > 1 and differences[-1] == 0:
            return True
        if len(differences) > 1 and differences[-2] != 0:
            return bool(differences[-1] < differences[-2] * mp.mpf(10) ** -50)
    return False


def _is_defined_at(node: Node, point: Mapping[str, Fraction]) -> bool:
    """Whether a scalar has a real value there."""
    try:
        _Evaluator(point, real=True).value(node)
    except UndefinedError:
        return False
    return True


def _rational(value: Fraction) -> Any:
    return mp.mpf(value.numerator) / value.denominator


class _Evaluator:
    """Evaluates one tree at one point at the current precision."""

    def __init__(self, point: Mapping[str, Fraction], real: bool) -> None:
        self.point = point
        self.real = real

    def value(self, node: Node) -> Any:
        """The value as an mpmath number.

        Raises:
            UndefinedError: no value here, or not a real one in real mode.
            TooLargeError: a magnitude outside 10^(+-MAX_DIGITS).
        """
        match node:
            case Num(value):
                return _rational(value)
            case Sym(name):
                return _rational(self.point[name])
            case Const(name):
                return self.constant(name)
            case Add(terms):
                return mp.fsum([self.value(term) for term in terms])
            case Mul(factors):
                return self.checked(mp.fprod([self.value(factor) for factor in factors]))
            case Pow(base, exponent):
                return self.power(self.value(base), self.value(exponent))
            case Func("sum" | "prod" as name, (_, low, high, term)):
                return self.checked(self.series(name, _whole(self.value(low)), _whole(self.value(high)), term))
            case Func("floor" | "ceil", (arg,)) if contains(arg, (Func, Const)):
                return self.rounded(node.name, self.value(arg))
            case Func(name, args):
                return self.checked(self.apply(name, [self.value(arg) for arg in args]))
        raise UndefinedError(f"a {type(node).__name__} has no numeric value")

    def rounded(self, name: str, value: Any) -> Any:
        """The floor or ceiling of a value that is not exact: not where an error could move it over a whole number."""
        if mp.im(value) == 0 and abs(value - mp.nint(value)) < mp.mpf(10) ** (-mp.dps // 2):
            raise UndefinedError("too close to a whole number")
        return self.checked(self.apply(name, [value]))

    def series(self, name: str, low: int, high: int, term: Node) -> Any:
        """The sum or product of ``term`` with the index from ``low`` to ``high``."""
        if high - low > _MAX_TERMS:
            raise TooLargeError
        if high < low or any(BOUND.name in symbol and symbol != BOUND.name for symbol in free_symbols(term)):
            raise UndefinedError("an empty series, or one of the terms of a sequence")
        points = ({**self.point, BOUND.name: Fraction(index)} for index in range(low, high + 1))
        values = [_Evaluator(point, self.real).value(term) for point in points]
        return mp.fsum(values) if name == "sum" else mp.fprod(values)

    def checked(self, value: Any) -> Any:
        if not mp.isfinite(value):
            raise UndefinedError("not finite")
        if self.real and mp.im(value) != 0:
            raise UndefinedError("not real")
        if value != 0 and abs(mp.mag(value)) > _MAX_MAGNITUDE:
            raise TooLargeError
        return value

    def constant(self, name: str) -> Any:
        if name == "infinity":
            raise UndefinedError("infinite")
        return {"pi": mp.pi, "e": mp.e, "i": mp.j}[name] * 1

    def power(self, base: Any, exponent: Any) -> Any:
        if base == 0:
            if mp.re(exponent) <= 0:
                raise UndefinedError("zero to a power that is not positive")
            return base
        # The size of the result, before computing it.
        if abs(exponent) * abs(mp.log(base, 2)) > _MAX_MAGNITUDE:
            raise TooLargeError
        return self.checked(mp.power(base, exponent))

    def apply(self, name: str, args: list[Any]) -> Any:
        if name == "abs":
            return abs(args[0])
        if name in ("floor", "ceil"):
            if mp.im(args[0]) != 0:
                raise UndefinedError("rounding a complex number")
            return mp.floor(args[0]) if name == "floor" else mp.ceil(args[0])
        if name in ("factorial", "binom"):
            naturals = [_natural(arg) for arg in args]
            return mp.factorial(naturals[0]) if name == "factorial" else mp.binomial(*naturals)
        if name in ("max", "min"):
            if any(mp.im(arg) != 0 for arg in args):
                raise UndefinedError("the order of complex numbers")
            return max(args) if name == "max" else min(args)
        if name == "dot":
            half = len(args) // 2
            return mp.fsum(a * b for a, b in zip(args[:half], args[half:], strict=True))
        if name == "det":
            size = math.isqrt(len(args))
            return mp.det(mp.matrix([args[at : at + size] for at in range(0, len(args), size)]))
        if name in ("gcd", "lcm", "mod"):
            wholes = [_whole(arg) for arg in args]
            if name == "mod" and wholes[1] == 0:
                raise UndefinedError("modulo zero")
            operations = {"gcd": math.gcd, "lcm": math.lcm, "mod": int.__mod__}
            return mp.mpf(operations[name](*wholes))
        if name in ("sinh", "cosh", "tanh") and abs(args[0]) > _MAX_MAGNITUDE:
            raise TooLargeError
        try:
            return _FUNCTIONS[name](args[0])
        except (ZeroDivisionError, ValueError) as error:
            raise UndefinedError(f"{name} has a pole here") from error


def _whole(value: Any) -> int:
    if mp.im(value) != 0 or value != mp.floor(mp.re(value)):
        raise UndefinedError("not a whole number")
    return int(mp.re(value))


def _natural(value: Any) -> int:
    if mp.im(value) != 0 or mp.re(value) < 0 or value != mp.floor(mp.re(value)):
        raise UndefinedError("a factorial or binomial of something other than a natural number")
    value = mp.re(value)
    if value > MAX_FACTORIAL:
        raise TooLargeError
    return int(value)
