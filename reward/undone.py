"""Answers equal to gold that leave to do what the question asks for: functions to evaluate, factors to split."""

import math
from fractions import Fraction

from deltarl.reward.exact import normal_form
from deltarl.reward.limits import MAX_FAST_DIGITS, UndecidedError
from deltarl.reward.question import Question
from deltarl.reward.tree import Add, Equation, Func, Mul, Node, Num, Pow, Quantity, Sym, children, free_symbols

_NAMES = "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh log ln lg"
_TO_EVALUATE = frozenset(_NAMES.split())


def leaves_undone(pred: Node, gold: Node, question: Question) -> bool:
    """Whether ``pred`` keeps a function of a number that gold has not, or is factored less than gold, if that is asked.

    Polynomials factor in one way only: as many factors as gold has, none of them a constant in disguise or with a
    divisor of all its coefficients, are gold's factors.
    """
    if question.asks_value and _functions(pred) and not _functions(gold):
        return True
    if not question.asks_factored:
        return False
    if _factors(pred) < _factors(gold):
        return True
    return any(flaw(pred) and not flaw(gold) for flaw in (_hides_divisor, _divides))


def _functions(node: Node) -> bool:
    """Whether every side of an equation, or another node, holds a sine, logarithm or the like of a number."""
    if isinstance(node, Equation):
        return all(_functions(side) for side in node.sides if not isinstance(side, Sym))
    if isinstance(node, Func) and node.name in _TO_EVALUATE and not free_symbols(node):
        return True
    return any(map(_functions, children(node)))


def _factors(node: Node) -> int:
    """How many factors a product has, each as often as its power says: with a variable, or else numbers."""
    return _count(node, bool(free_symbols(node)))


def _count(node: Node, with_variables: bool) -> int:
    match node:
        case Equation(sides):
            return max(_count(side, with_variables) for side in sides)
        case Quantity(value=value):
            return _count(value, with_variables)
        case Mul(factors):
            return sum(_count(factor, with_variables) for factor in factors)
        case Pow(base, Num(exponent)) if exponent.denominator == 1:
            return _count(base, with_variables) * int(exponent)  # one below a fraction bar cancels another
        case Pow(_, Num()):
            return 0  # a root: x is the square of another
        case Num(value):
            return not with_variables and abs(value) != 1
    return with_variables and _varies(node)


def _varies(node: Node) -> bool:
    """Whether an expression has a variable that does not cancel."""
    try:
        return not isinstance(normal_form(node, MAX_FAST_DIGITS), int | Fraction)
    except (ArithmeticError, UndecidedError):
        return bool(free_symbols(node))


def _hides_divisor(node: Node) -> bool:
    """Whether the coefficients of a sum that is a factor have a common divisor: ``(3x - 6)(x + 2)``."""
    match node:
        case Equation(sides):
            return all(map(_hides_divisor, (side for side in sides if isinstance(side, Mul | Pow))))
        case Mul(factors):
            return any(map(_hides_divisor, factors))
        case Pow(Add() as base, Num()):
            return _hides_divisor(base)
        case Add(terms):
            coefficients = [_coefficient(term) for term in terms]
            whole = [int(value) for value in coefficients if value.denominator == 1]
            return len(whole) == len(terms) and math.gcd(*whole) > 1
    return False


def _divides(node: Node) -> bool:
    """Whether a factor with a variable stands below a fraction bar, where it may cancel another."""
    match node:
        case Pow(base, Num(exponent)) if exponent < 0:
            return bool(free_symbols(base))
        case Mul() | Equation():
            return any(map(_divides, children(node)))
    return False


def _coefficient(term: Node) -> Fraction:
    match term:
        case Num(value):
            return value
        case Mul(factors):
            return math.prod((factor.value for factor in factors if isinstance(factor, Num)), start=Fraction(1))
    return Fraction(1)
