"""Answers equal to gold that leave to do what the question asks for: functions to evaluate, factors to split."""

from deltarl.reward.question import Question
from deltarl.reward.tree import Equation, Func, Mul, Node, Num, Pow, Quantity, Sym, children, free_symbols

_NAMES = "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh log ln lg"
_TO_EVALUATE = frozenset(_NAMES.split())


def leaves_undone(pred: Node, gold: Node, question: Question) -> bool:
    """Whether ``pred`` keeps a function of a number that gold has not, or fewer factors than gold, if that is asked."""
    if question.asks_value and _functions(pred) and not _functions(gold):
        return True
    return question.asks_factored and _factors(pred) < _factors(gold)


def _functions(node: Node) -> bool:
    """Whether every side of an equation, or another node, holds a sine, logarithm or the like of a number."""
    if isinstance(node, Equation):
        return all(_functions(side) for side in node.sides if not isinstance(side, Sym))
    if isinstance(node, Func) and node.name in _TO_EVALUATE and not free_symbols(node):
        return True
    return any(map(_functions, children(node)))


def _factors(node: Node) -> int:
    """How many factors with a variable a product has, each as often as its power says."""
    match node:
        case Equation(sides):
            return max(map(_factors, sides))
        case Quantity(value=value):
            return _factors(value)
        case Mul(factors):
            return sum(map(_factors, factors))
        case Pow(base, Num(exponent)) if exponent.denominator == 1 and exponent > 0:
            return _factors(base) * int(exponent)
    return 1 if free_symbols(node) else 0
