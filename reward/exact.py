"""Exact rational arithmetic and a canonical form, without sympy: decides most answers in microseconds.

``normal_form`` maps a tree to a hashable value. Two trees with the same normal form are equal everywhere both are
defined; two that are both rational numbers are equal only if their normal forms are. Anything else is undecided here.
"""

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from deltarl.reward.decimals import as_decimal, rounds_at_length, rounds_to
from deltarl.reward.limits import BITS_PER_DIGIT, MAX_FACTORIAL, TooLargeError, UndecidedError, UndefinedError
from deltarl.reward.tree import Add, Const, Func, Mul, Node, Num, Pow, Sym, contains

# A number; ("sym" | "const", name); ("func", name, *args); ("mul", coefficient, {(base, exponent)});
# ("add", {(term, coefficient)}), the constant term being 1. Sets are frozen, so order does not matter.
Form = Fraction | tuple[Any, ...]

_ZERO, _ONE = Fraction(0), Fraction(1)
_INFINITY = frozenset({"infinity"})
_INFINITE_FORMS = (
    ("const", "infinity"),
    ("mul", Fraction(-1), frozenset({(("const", "infinity"), _ONE)})),
)


def same_value(pred: Node, gold: Node, max_digits: int) -> bool:
    """Whether two scalars are equal, by exact arithmetic alone.

    A gold written as a decimal is compared by the rounding rules of ``decimals``.

    Raises:
        UndecidedError: exact arithmetic cannot tell.
        TooLargeError: a value would exceed ``max_digits`` digits.
        UndefinedError: an expression has no value.
    """
    normalizer = _Normalizer(max_digits)
    pred_form, gold_form = normalizer.form(pred), normalizer.form(gold)
    for node, form in ((pred, pred_form), (gold, gold_form)):
        if contains(node, Const, _INFINITY) and form not in _INFINITE_FORMS:
            raise UndefinedError("arithmetic on infinity")
    decimal = as_decimal(gold)
    if isinstance(pred_form, Fraction) and isinstance(gold_form, Fraction):
        if decimal is None:
            return pred_form == gold_form or rounds_at_length(pred, gold_form)
        return rounds_to(pred, pred_form, decimal)
    if pred_form == gold_form:
        return True
    if _symbols(pred_form) != _symbols(gold_form) and _is_expanded(pred_form) and _is_expanded(gold_form):
        return False  # no variable can cancel
    raise UndecidedError


def normal_form(node: Node, max_digits: int) -> Form:
    """The canonical form of a scalar; see the module's description. Raises as ``same_value``."""
    return _Normalizer(max_digits).form(node)


def _symbols(form: Form) -> frozenset[str]:
    if isinstance(form, Fraction):
        return frozenset()
    match form:
        case ("sym", name):
            return frozenset({name})
        case ("const", _):
            return frozenset()
        case ("func", _, *parts):
            return _union(parts)
        case ("mul", _, factors):
            return _union(part for factor in factors for part in factor)
        case ("add", terms):
            return _union(term for term, _ in terms)
    raise AssertionError(form[0])


def _is_expanded(form: Form) -> bool:
    """Whether it is a sum of products of powers of variables and constants."""
    match form:
        case ("add", terms):
            return all(_is_expanded(term) for term, _ in terms)
        case ("mul", _, factors):
            return all(isinstance(exponent, Fraction) and _is_atom(base) for base, exponent in factors)
    return _is_atom(form)


def _is_atom(form: Form) -> bool:
    return isinstance(form, Fraction) or form[0] in ("sym", "const")


def _union(forms: Iterable[Form]) -> frozenset[str]:
    return frozenset().union(*(_symbols(form) for form in forms))


class _Normalizer:
    def __init__(self, max_digits: int) -> None:
        self.max_bits = int(max_digits * BITS_PER_DIGIT)

    def form(self, node: Node) -> Form:
        match node:
            case Num(value):
                return self.bounded(value)
            case Sym(name):
                return ("sym", name)
            case Const(name):
                return ("const", name)
            case Add(terms):
                return self.add([self.form(term) for term in terms])
            case Mul(factors):
                return self.multiply([self.form(factor) for factor in factors])
            case Pow(base, exponent):
                return self.power(self.form(base), self.form(exponent))
            case Func(name, args):
                return self.apply(name, [self.form(arg) for arg in args])
        raise UndecidedError  # not a scalar

    def bounded(self, value: Fraction) -> Fraction:
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > self.max_bits:
            raise TooLargeError
        return value

    def add(self, forms: list[Form]) -> Form:
        terms: dict[Form, Fraction] = {}
        for form in forms:
            items = form[1] if isinstance(form, tuple) and form[0] == "add" else (_as_term(form),)
            for term, coefficient in items:
                terms[term] = self.bounded(terms.get(term, _ZERO) + coefficient)
        terms = {term: coefficient for term, coefficient in terms.items() if coefficient}
        if not terms:
            return _ZERO
        if len(terms) == 1:
            [(term, coefficient)] = terms.items()
            return self.multiply([term, coefficient])
        return ("add", frozenset(terms.items()))

    def multiply(self, forms: list[Form]) -> Form:
        coefficient = _ONE
        factors: dict[Form, Form] = {}
        for form in forms:
            if isinstance(form, Fraction):
                coefficient = self.bounded(coefficient * form)
                continue
            inner, items = (form[1], form[2]) if form[0] == "mul" else (_ONE, ((form, _ONE),))
            coefficient = self.bounded(coefficient * inner)
            for base, exponent in items:
                factors[base] = self.add([factors[base], exponent]) if base in factors else exponent
        for base, exponent in list(factors.items()):
            value = self.rational_power(base, exponent)
            if value is not None:
                coefficient = self.bounded(coefficient * value)
                del factors[base]
        return self.make_product(coefficient, factors)

    def make_product(self, coefficient: Fraction, factors: dict[Form, Form]) -> Form:
        if not coefficient or not factors:
            return coefficient
        if len(factors) == 1:
            [(base, exponent)] = factors.items()
            if exponent == _ONE and coefficient == _ONE:
                return base
            if exponent == _ONE and isinstance(base, tuple) and base[0] == "add":
                # 2(x + 1) is 2x + 2, so that (3n + m)/2 and 3n/2 + m/2 are one form.
                return ("add", frozenset((term, self.bounded(inner * coefficient)) for term, inner in base[1]))
        return ("mul", coefficient, frozenset(factors.items()))

    def power(self, base: Form, exponent: Form) -> Form:
        value = self.rational_power(base, exponent)
        if value is not None:
            return value
        integer = isinstance(exponent, Fraction) and exponent.denominator == 1
        if integer and isinstance(base, tuple) and base[0] == "mul":
            # (c x^a)^n = c^n x^(a n) holds for integer n only.
            powers: list[Form] = [self.power(inner, self.multiply([outer, exponent])) for inner, outer in base[2]]
            return self.multiply([self.power(base[1], exponent), *powers])
        return base if exponent == _ONE else self.make_product(_ONE, {base: exponent})

    def rational_power(self, base: Form, exponent: Form) -> Fraction | None:
        """``base ** exponent`` if that is a rational number worth computing, else None (it stays symbolic)."""
        if exponent == _ZERO:
            if base == _ZERO:
                raise UndefinedError("zero to the power zero")
            return _ONE
        if not isinstance(base, Fraction) or not isinstance(exponent, Fraction):
            return _ONE if base == _ONE else None
        if base == _ZERO and exponent < 0:
            raise UndefinedError("division by zero")
        if exponent.denominator == 2 and base >= 0:
            top, bottom = math.isqrt(base.numerator), math.isqrt(base.denominator)
            if (top * top, bottom * bottom) != (base.numerator, base.denominator):
                return None
            base, exponent = Fraction(top, bottom), Fraction(exponent.numerator)
        if exponent.denominator != 1:
            return None
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(base) != 1 and base != 0 and abs(exponent) * bits > self.max_bits:
            return None  # a tower: compared by structure
        if base == -1:
            return _ONE if exponent % 2 == 0 else base
        return _ZERO if base == 0 else _ONE if base == 1 else base ** int(exponent)

    def apply(self, name: str, args: list[Form]) -> Form:
        if name == "abs" and isinstance(args[0], Fraction):
            return abs(args[0])
        if name == "factorial" and isinstance(args[0], Fraction):
            return self.bounded(Fraction(math.factorial(_small_natural(args[0]))))
        if name == "binom" and all(isinstance(arg, Fraction) for arg in args):
            return self.bounded(Fraction(math.comb(_small_natural(args[0]), _small_natural(args[1]))))
        return ("func", name, *args)


def _as_term(form: Form) -> tuple[Form, Fraction]:
    if isinstance(form, Fraction):
        return _ONE, form
    if form[0] != "mul":
        return form, _ONE
    if len(form[2]) == 1:
        [(base, exponent)] = form[2]
        if exponent == _ONE:
            return base, form[1]
    return ("mul", _ONE, form[2]), form[1]


def _small_natural(form: Form) -> int:
    if not isinstance(form, Fraction) or form.denominator != 1 or form < 0:
        raise UndefinedError("a factorial or binomial of something other than a natural number")
    if form > MAX_FACTORIAL:
        raise TooLargeError
    return int(form)
