r"""Answers that are equal to gold and still no answer: the question handed back, arithmetic left to do, ``5 = 5``.

The rules need to know how gold is written and what the question asks; equality alone cannot tell.
"""

import dataclasses
import math
from fractions import Fraction
from operator import attrgetter

from deltarl.reward.operators import DERIVATIVE_BY
from deltarl.reward.question import Question, expressions
from deltarl.reward.tree import (
    Add,
    Const,
    Equation,
    Func,
    Mul,
    Node,
    Num,
    Pow,
    Quantity,
    Scalar,
    Seq,
    Sym,
    children,
    contains,
    free_symbols,
)
from deltarl.reward.verdict import Reason

_MOST_OPERATIONS = 10
"""Operations on numbers that an answer may leave open where the question does not ask for a value."""

_UNSOLVED_FUNCTIONS = frozenset({"gcd", "lcm", "max", "min", "mod", "det", "dot"})


def leaves_function(pred: Node, gold: Node) -> bool:
    """Whether a sum, gcd, maximum or the like is left to work out where gold has none; 2 (mod 3) is a residue."""
    return pred is not gold and _is_unsolved(pred) and not _is_unsolved(gold)


def _is_unsolved(node: Node) -> bool:
    if isinstance(node, Equation):
        return all(map(_is_unsolved, node.sides))
    derivative = any(DERIVATIVE_BY in name for name in free_symbols(node))
    return derivative or contains(node, Func, _UNSOLVED_FUNCTIONS)


def refusal(pred: Node, gold: Node, question: Question) -> Reason | None:
    """Why ``pred``, which is equal to ``gold``, is no answer to ``question``; None where it is one."""
    if _is_tautology(pred):
        return Reason.TAUTOLOGY
    if pred == gold:
        return None
    if _is_echo(pred, gold, question):
        return Reason.ECHO
    if _is_unsimplified(pred, gold, question):
        return Reason.UNSIMPLIFIED
    return None


def _is_tautology(pred: Node) -> bool:
    if not isinstance(pred, Equation) or len(set(map(type, pred.sides))) > 1:  # which tells most apart
        return False
    return len({_spelling(side) for side in pred.sides}) == 1


def _is_echo(pred: Node, gold: Node, question: Question) -> bool:
    """Whether the question shows ``pred``, more than a number or name, and gold is written otherwise."""
    if not question.text or not _is_composite(pred):
        return False
    spelling = _spelling(pred)
    if spelling == _spelling(gold) or _spelling(_value(pred)) == _spelling(_value(gold)):
        return False
    return any(spelling == _spelling(shown) for shown in expressions(question))


def _value(node: Node) -> Node:
    """What ``x = ...`` or a quantity says."""
    match node:
        case Equation((Sym(), value)) | Quantity(value=value):
            return value
    return node


def _is_composite(node: Node) -> bool:
    """Whether a node is made with operations: ``17 \\cdot 23``, but not 5, -x, ``\\frac{2}{3}`` or (1, 2)."""
    match node:
        case Quantity(value=value):
            return _is_composite(value)
        case Seq(items=items):
            return any(map(_is_composite, items))
        case Num() | Sym() | Const():
            return False
    return _fraction(node) is None and bool(children(node))


def _is_unsimplified(pred: Node, gold: Node, question: Question) -> bool:
    if question.asks_reduced and _has_unreduced(pred) and not _has_unreduced(gold):
        return True
    if question.asks_expanded and _has_unexpanded(pred) and not _has_unexpanded(gold):
        return True
    if question.asks_factored and isinstance(_value(pred), Add) and isinstance(_value(gold), Mul | Pow):
        return True
    return _open_operations(gold) == 0 and _open_operations(pred) > (0 if question.asks_value else _MOST_OPERATIONS)


def _has_unreduced(node: Node) -> bool:
    fraction = _fraction(node)
    if fraction is not None:
        return math.gcd(*fraction) > 1
    return any(map(_has_unreduced, children(node)))


def _has_unexpanded(node: Node) -> bool:
    """Whether a sum is multiplied by something, or raised to a natural power."""
    match node:
        case Mul(factors):
            if any(isinstance(factor, Add) for factor in factors):
                return True
        case Pow(Add(), Num(exponent)) if exponent.denominator == 1 and exponent > 1:
            return True
    return any(map(_has_unexpanded, children(node)))


def _open_operations(node: Node) -> int:
    """Operations on rational numbers alone that could be carried out, a fraction bar and a power of ten not counted.

    Of an equation, such as ``17 \\cdot 23 = 391``, those of its simplest side; of several values those of one.
    """
    if isinstance(node, Equation):
        return min(map(_open_operations, node.sides))
    if not isinstance(node, Scalar):
        return max(map(_open_operations, children(node)), default=0)
    return _count(node)[1]


def _count(node: Node) -> tuple[bool, int]:
    """Whether a node is a rational number, as far as can be told cheaply, and its open operations."""
    fraction = _fraction(node)
    if isinstance(node, Num):
        return True, 0
    if fraction is not None:
        return True, int(fraction[0] % fraction[1] == 0)  # 6/3 is a division to carry out
    counted = [_count(child) for child in children(node)]
    inside = sum(operations for _, operations in counted)
    match node:
        case Mul((Num(), Pow(Num(base), Num()))) | Pow(Num(base), Num()) if base == 10:
            return True, 0  # scientific notation
        case Add(parts) | Mul(parts):
            numbers = sum(
                is_number and not _is_sign_or_bar(part) for part, (is_number, _) in zip(parts, counted, strict=True)
            )
            return all(is_number for is_number, _ in counted), inside + max(0, numbers - 1)
        case Pow(_, Num(exponent)) if exponent == -1:
            return counted[0][0], inside
        case Pow(base, Num(exponent)) if all(is_number for is_number, _ in counted):
            whole = exponent.denominator == 1 or (exponent.denominator == 2 and _is_square(base))
            return whole, inside + whole
        case Func("factorial" | "binom" | "abs" | "floor" | "ceil") if all(is_number for is_number, _ in counted):
            return True, inside + 1
    return False, inside


def _is_sign_or_bar(factor: Node) -> bool:
    """Whether a factor is the minus sign, or what is below a fraction bar."""
    match factor:
        case Num(value):
            return value == -1
        case Pow(_, Num(exponent)):
            return exponent == -1
    return False


def _is_square(node: Node) -> bool:
    if not isinstance(node, Num) or node.value < 0:
        return False
    return all(math.isqrt(part) ** 2 == part for part in node.value.as_integer_ratio())


def _fraction(node: Node) -> tuple[int, int] | None:
    r"""Numerator and denominator of ``\frac{2}{3}``, ``-2/3`` and the like, as written and without sign."""
    match node:
        case Mul((Num(sign), Num() as top, Pow(Num() as bottom, Num(exponent)))) if sign == -1:
            pass
        case Mul((Num() as top, Pow(Num() as bottom, Num(exponent)))):
            pass
        case _:
            return None
    if exponent != -1 or not bottom.value or any(n.value.denominator != 1 or n.decimals for n in (top, bottom)):
        return None
    return abs(int(top.value)), abs(int(bottom.value))


def _own_values(node: Node) -> list[object]:
    """What a node says beside its sub-trees; the decimal places of a number are not part of it."""
    match node:
        case Num(value):
            return [value]
        case Seq(kind):
            return [kind]
    values = (attrgetter(field.name)(node) for field in dataclasses.fields(node))
    return [value for value in values if _is_plain(value)]


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, str | bool | int)


def _spelling(node: Node) -> str:
    """How a node is written, the order of terms, factors, sides and elements aside."""
    own, parts = [type(node).__name__], [_spelling(child) for child in children(node)]
    for value in _own_values(node):
        if isinstance(value, Fraction):
            own.append(f"{value.numerator:x}/{value.denominator:x}")  # Python refuses to print huge ones in decimal
        else:
            own.append(str(value))
    unordered = isinstance(node, Add | Mul | Equation) or (isinstance(node, Seq) and node.kind in ("list", "set"))
    return f"{' '.join(own)}({','.join(sorted(parts) if unordered else parts)})"
