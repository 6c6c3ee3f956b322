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
)

# Whole numbers are ints: they are most of what there is, and an order of magnitude faster. They equal their Fraction,
# and hash like it.
Number = int | Fraction
# A number; ("sym" | "const", name); ("func", name, *args); ("mul", coefficient, {(base, exponent)});
# ("add", {(term, coefficient)}), the constant term being 1. Sets are frozen, so order does not matter.
Form = Number | tuple[Any, ...]

_SMALL = 1 << 64
_INFINITE_FORMS = (
    ("const", "infinity"),
    ("mul", -1, frozenset({(("const", "infinity"), 1)})),
)


def same_value(pred: Node, gold: Node, max_digits: int) -> bool:
    """Whether two scalars are equal, by exact arithmetic alone.

    A gold written as a decimal is compared by the rounding rules of ``decimals``. What leaves an operation such as
    gcd to be done is no answer where gold has none.

    Raises:
        UndecidedError: exact arithmetic cannot tell.
        TooLargeError: a value would exceed ``max_digits`` digits.
        UndefinedError: an expression has no value.
    """
    if pred is gold and plainly_has_value(pred):
        return True
    normalizer, gold_normalizer = _Normalizer(max_digits), _Normalizer(max_digits)
    pred_form = normalizer.checked_form(pred)
    if pred is gold:
        return True  # it has a value, which is what such a comparison is for
    gold_form = gold_normalizer.checked_form(gold)
    if normalizer.operates and not gold_normalizer.operates:
        return False
    decimal = as_decimal(gold)
    if not isinstance(pred_form, tuple) and not isinstance(gold_form, tuple):
        if decimal is None:
            return pred_form == gold_form or rounds_at_length(pred, gold_form)
        return rounds_to(pred, pred_form, decimal)
    if pred_form == gold_form:
        return True
    symbols = _symbols(pred_form)
    if decimal is not None and symbols:
        return False
    if symbols != _symbols(gold_form) and _is_expanded(pred_form) and _is_expanded(gold_form):
        return False  # no variable can cancel
    raise UndecidedError


def plainly_has_value(node: Node) -> bool:
    """Whether nothing in a tree can be without a value: no function, infinity or power of what may be zero."""
    stack = [node]
    while stack:
        current = stack.pop()
        if isinstance(current, (Num, Sym)):
            continue  # most of them
        if isinstance(current, Mul):
            stack += current.factors
        elif isinstance(current, Pow):
            base = current.base
            if not isinstance(base, Sym) and not (isinstance(base, Num) and base.value):
                return False
            stack.append(current.exponent)
        elif isinstance(current, Func) or (isinstance(current, Const) and current.name == "infinity"):
            return False
        else:
            stack += children(current)
    return True


def normal_form(node: Node, max_digits: int) -> Form:
    """The canonical form of a scalar; see the module's description. Raises as ``same_value``."""
    return _Normalizer(max_digits).form(node)


def _symbols(form: Form) -> frozenset[str]:
    if not isinstance(form, tuple):
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
            return all(not isinstance(exponent, tuple) and _is_atom(base) for base, exponent in factors)
    return _is_atom(form)


def _is_atom(form: Form) -> bool:
    return not isinstance(form, tuple) or form[0] in ("sym", "const")


def _union(forms: Iterable[Form]) -> frozenset[str]:
    return frozenset().union(*(_symbols(form) for form in forms))


class _Normalizer:
    """Normalises one scalar, and notes on the way whether it has infinity or an operation of ``OPERATION_NAMES``."""

    def __init__(self, max_digits: int) -> None:
        self.max_bits = int(max_digits * BITS_PER_DIGIT)
        self.infinite = False
        self.operates = False

    def checked_form(self, node: Node) -> Form:
        """As ``form``. Raises UndefinedError for arithmetic on infinity, which has rules of its own."""
        form = self.form(node)
        if self.infinite and form not in _INFINITE_FORMS:
            raise UndefinedError("arithmetic on infinity")
        return form

    def form(self, node: Node) -> Form:
        # Not by match, which takes three times as long, and this is half of a comparison.
        if isinstance(node, Num):
            value = node.value
            return self.bounded(value.numerator if value.denominator == 1 else value)
        if isinstance(node, Sym):
            return ("sym", node.name)
        if isinstance(node, Mul):
            return self.multiply([self.form(factor) for factor in node.factors])
        if isinstance(node, Pow):
            return self.power(self.form(node.base), self.form(node.exponent))
        if isinstance(node, Add):
            return self.add([self.form(term) for term in node.terms])
        if isinstance(node, Const):
            self.infinite = self.infinite or node.name == "infinity"
            return ("const", node.name)
        if isinstance(node, Func):
            return self.apply(node.name, [self.form(arg) for arg in node.args])
        raise UndecidedError  # not a scalar

    def bounded(self, value: Number) -> Number:
        if type(value) is int and -_SMALL < value < _SMALL:
            return value
        if value.numerator.bit_length() > self.max_bits or value.denominator.bit_length() > self.max_bits:
            raise TooLargeError
        return value

    def add(self, forms: list[Form]) -> Form:
        terms: dict[Form, Number] = {}
        for form in forms:
            items = form[1] if isinstance(form, tuple) and form[0] == "add" else (_as_term(form),)
            for term, coefficient in items:
                terms[term] = self.bounded(terms.get(term, 0) + coefficient)
        terms = {term: coefficient for term, coefficient in terms.items() if coefficient}
        if not terms:
            return 0
        if len(terms) == 1:
            [(term, coefficient)] = terms.items()
            return self.multiply([term, coefficient])
        return ("add", frozenset(terms.items()))

    def multiply(self, forms: list[Form]) -> Form:
        coefficient: Number = 1
        factors: dict[Form, Form] = {}
        for form in forms:
            if not isinstance(form, tuple):
                coefficient = self.bounded(coefficient * form)
                continue
            inner, items = (form[1], form[2]) if form[0] == "mul" else (1, ((form, 1),))
            coefficient = self.bounded(coefficient * inner)
            for base, exponent in items:
                factors[base] = self.add([factors[base], exponent]) if base in factors else exponent
        for base, exponent in list(factors.items()):
            value = self.rational_power(base, exponent)
            if value is not None:
                coefficient = self.bounded(coefficient * value)
                del factors[base]
        return self.make_product(coefficient, factors)

    def make_product(self, coefficient: Number, factors: dict[Form, Form]) -> Form:
        if not coefficient or not factors:
            return coefficient
        if len(factors) == 1:
            [(base, exponent)] = factors.items()
            if exponent == 1 and coefficient == 1:
                return base
            if exponent == 1 and isinstance(base, tuple) and base[0] == "add":
                # 2(x + 1) is 2x + 2, so that (3n + m)/2 and 3n/2 + m/2 are one form.
                return ("add", frozenset((term, self.bounded(inner * coefficient)) for term, inner in base[1]))
        return ("mul", coefficient, frozenset(factors.items()))

    def power(self, base: Form, exponent: Form) -> Form:
        value = self.rational_power(base, exponent)
        if value is not None:
            return value
        integer = not isinstance(exponent, tuple) and exponent.denominator == 1
        if integer and isinstance(base, tuple) and base[0] == "mul":
            # (c x^a)^n = c^n x^(a n) holds for integer n only.
            powers: list[Form] = [self.power(inner, self.multiply([outer, exponent])) for inner, outer in base[2]]
            return self.multiply([self.power(base[1], exponent), *powers])
        return base if exponent == 1 else self.make_product(1, {base: exponent})

    def rational_power(self, base: Form, exponent: Form) -> Number | None:
        """``base ** exponent`` if that is a rational number worth computing, else None (it stays symbolic)."""
        if exponent == 0:
            if base == 0:
                raise UndefinedError("zero to the power zero")
            return 1
        if isinstance(base, tuple) or isinstance(exponent, tuple):
            return 1 if base == 1 else None
        return self.power_of_number(base, exponent)

    def power_of_number(self, base: Number, exponent: Number) -> Number | None:
        if base == 0 and exponent < 0:
            raise UndefinedError("division by zero")
        if exponent.denominator == 2 and base >= 0:
            top, bottom = math.isqrt(base.numerator), math.isqrt(base.denominator)
            if (top * top, bottom * bottom) != (base.numerator, base.denominator):
                return None
            base = _quotient(top, bottom)
            exponent = exponent.numerator
        if exponent.denominator != 1:
            return None
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(base) != 1 and base != 0 and max(exponent, -exponent) * bits > self.max_bits:
            return None  # a tower: compared by structure
        if base == -1:
            return 1 if exponent.numerator % 2 == 0 else base
        if base in (0, 1):
            return base
        power = int(exponent)
        return base**power if power >= 0 else _quotient(base.denominator**-power, base.numerator**-power)

    def apply(self, name: str, args: list[Form]) -> Form:
        if name == "abs" and not isinstance(args[0], tuple):
            return max(args[0], -args[0])
        if name == "factorial" and not isinstance(args[0], tuple):
            return self.bounded(math.factorial(_small_natural(args[0])))
        if name == "binom" and all(not isinstance(arg, tuple) for arg in args):
            return self.bounded(math.comb(_small_natural(args[0]), _small_natural(args[1])))
        if name in OPERATION_NAMES:
            self.operates = True
            return self.operate(name, args)
        return ("func", name, *args)

    def operate(self, name: str, args: list[Form]) -> Form:
        """An operation: done if all are numbers, else one form, whatever the order."""
        numbers = [arg for arg in args if not isinstance(arg, tuple)]
        if name in ("sum", "prod"):
            return ("func", name, *args)
        if name == "mod":
            return numbers[0] % numbers[1] if len(numbers) == 2 and numbers[1] else ("func", name, *args)
        if name in ("det", "dot"):
            if len(numbers) < len(args):
                return ("func", name, *args)
            return self.determinant(numbers) if name == "det" else self.dot_product(numbers)
        whole = all(number.denominator == 1 for number in numbers)
        if len(numbers) < len(args) or not (whole or name in ("max", "min")):
            return ("func", name, *sorted(args, key=hash))
        if name in ("max", "min"):
            return max(numbers) if name == "max" else min(numbers)
        operation = math.gcd if name == "gcd" else math.lcm
        return self.bounded(operation(*(number.numerator for number in numbers)))

    def dot_product(self, entries: list[Number]) -> Number:
        half = len(entries) // 2
        products = [Fraction(left) * right for left, right in zip(entries[:half], entries[half:], strict=True)]
        return self.bounded(_whole(sum(products, Fraction())))

    def determinant(self, entries: list[Number]) -> Number:
        """By Gaussian elimination."""
        size = math.isqrt(len(entries))
        rows = [[Fraction(entry) for entry in entries[at : at + size]] for at in range(0, len(entries), size)]
        found = Fraction(1)
        for column in range(size):
            pivot = next((row for row in range(column, size) if rows[row][column]), None)
            if pivot is None:
                return 0
            if pivot != column:
                rows[column], rows[pivot] = rows[pivot], rows[column]
                found = -found
            found *= rows[column][column]
            self.bounded(found)
            for below in rows[column + 1 :]:
                factor = below[column] / rows[column][column]
                for at in range(column, size):
                    below[at] -= factor * rows[column][at]
                    self.bounded(below[at])
        return _whole(found)


def _as_term(form: Form) -> tuple[Form, Number]:
    if not isinstance(form, tuple):
        return 1, form
    if form[0] != "mul":
        return form, 1
    if len(form[2]) == 1:
        [(base, exponent)] = form[2]
        if exponent == 1:
            return base, form[1]
    return ("mul", 1, form[2]), form[1]


def _whole(value: Fraction) -> Number:
    return value.numerator if value.denominator == 1 else value


def _quotient(top: int, bottom: int) -> Number:
    return _whole(Fraction(top, bottom))


def _small_natural(form: Form) -> int:
    if isinstance(form, tuple) or form.denominator != 1 or form < 0:
        raise UndefinedError("a factorial or binomial of something other than a natural number")
    if form > MAX_FACTORIAL:
        raise TooLargeError
    return int(form)
