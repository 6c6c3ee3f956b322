"""What it means for two answers to be the same, by the type of the gold: the expressions inside are another's job."""

from collections.abc import Callable, Sequence
from fractions import Fraction

from deltarl.reward.tree import (
    ZERO,
    Based,
    Const,
    Equation,
    Interval,
    IntervalUnion,
    Mul,
    Node,
    Num,
    Quantity,
    Scalar,
    Seq,
    Sym,
    Text,
    free_symbols,
    negate,
    product,
    substitute,
    total,
)

SameValue = Callable[[Node, Node], bool]
"""Decides whether scalar ``pred`` equals scalar ``gold``; the order matters for decimals."""

_FUNCTION_LETTERS = frozenset({"f", "g", "h"})
_RADIANS_PER_DEGREE = Mul((Const("pi"), Num(Fraction(1, 180))))


def same_answer(pred: Node, gold: Node, same_value: SameValue) -> bool:
    """Whether answer ``pred`` is right where ``gold`` is.

    Tuples are ordered, lists and sets are not (repetitions count), interval ends must be open or closed alike, units
    may be missing on one side but not conflict, ``x = 5`` stands for 5 but every link of a chain must hold, and an
    equation may be multiplied by a constant. Several values where gold is one are wrong.
    """
    if isinstance(pred, Equation) or isinstance(gold, Equation):
        return _same_equation(pred, gold, same_value)
    if isinstance(pred, Quantity) or isinstance(gold, Quantity):
        return _same_quantity(pred, gold, same_value)
    match gold, pred:
        case Seq("tuple", gold_items), Seq("tuple", items):
            return _all_same(items, gold_items, same_value)
        case Seq(kind, gold_items), Seq(other, items) if "tuple" not in (kind, other):
            return _match_unordered(items, gold_items, same_value)
        case IntervalUnion(gold_parts), IntervalUnion(parts):
            return _match_unordered(parts, gold_parts, same_value)
        case (Interval(), Seq("tuple", (low, high))):
            return _same_interval(Interval(low, high, True, True), gold, same_value)
        case (Seq("tuple", (low, high)), Interval()):
            return _same_interval(pred, Interval(low, high, True, True), same_value)
        case Interval(), Interval():
            return _same_interval(pred, gold, same_value)
        case (Text(), Text()) | (Based(), Based()):
            return pred == gold
    return isinstance(pred, Scalar) and isinstance(gold, Scalar) and same_value(pred, gold)


def _all_same(preds: Sequence[Node], golds: Sequence[Node], same_value: SameValue) -> bool:
    return len(preds) == len(golds) and all(
        same_answer(pred, gold, same_value) for pred, gold in zip(preds, golds, strict=True)
    )


def _same_interval(pred: Interval, gold: Interval, same_value: SameValue) -> bool:
    if (pred.low_open, pred.high_open) != (gold.low_open, gold.high_open):
        return False
    return _all_same((pred.low, pred.high), (gold.low, gold.high), same_value)


def _match_unordered(preds: Sequence[Node], golds: Sequence[Node], same_value: SameValue) -> bool:
    """Whether a one-to-one matching exists. Greedy is not enough: rounding makes equality intransitive."""
    if len(preds) != len(golds):
        return False
    candidates = [[j for j, gold in enumerate(golds) if same_answer(pred, gold, same_value)] for pred in preds]
    owner: dict[int, int] = {}

    def assign(pred: int, visited: set[int]) -> bool:
        for gold in candidates[pred]:
            if gold not in visited:
                visited.add(gold)
                if gold not in owner or assign(owner[gold], visited):
                    owner[gold] = pred
                    return True
        return False

    return all(assign(pred, set()) for pred in range(len(preds)))


def _same_quantity(pred: Node, gold: Node, same_value: SameValue) -> bool:
    match pred, gold:
        case Quantity(value, unit), Quantity(gold_value, gold_unit):
            return unit == gold_unit and same_answer(value, gold_value, same_value)
        case (Quantity(value, unit), _):
            return same_answer(value, gold, same_value) or (
                unit == "degree" and same_answer(Mul((value, _RADIANS_PER_DEGREE)), gold, same_value)
            )
        case (_, Quantity(gold_value, unit)):
            return same_answer(pred, gold_value, same_value) or (
                unit == "degree" and same_answer(pred, Mul((gold_value, _RADIANS_PER_DEGREE)), same_value)
            )
    raise AssertionError("one side is a quantity")


def _same_equation(pred: Node, gold: Node, same_value: SameValue) -> bool:
    name, values = _assignment(pred)
    gold_name, gold_values = _assignment(gold)
    if not isinstance(gold, Equation):
        return all(same_answer(value, gold, same_value) for value in values)
    if not isinstance(pred, Equation):
        return gold_name is not None and same_answer(pred, gold_values[-1], same_value)
    if name is not None and name == gold_name:
        return all(same_answer(value, gold_values[-1], same_value) for value in values)
    if len(pred.sides) == len(gold.sides) == 2 and all(isinstance(s, Scalar) for s in (*pred.sides, *gold.sides)):
        return _proportional(_difference(pred), _difference(gold), same_value)
    return False


def _assignment(node: Node) -> tuple[Node | None, tuple[Node, ...]]:
    """The name an equation assigns to, if its first side is one, and the sides that must all be the answer."""
    if not isinstance(node, Equation):
        return None, (node,)
    first = node.sides[0]
    return (first, node.sides[1:]) if _is_name(first) else (None, node.sides)


def _is_name(node: Node) -> bool:
    match node:
        case Sym():
            return True
        case Mul((Sym(name), Sym())):
            return name in _FUNCTION_LETTERS  # f(x)
        case Seq("tuple", items):
            return all(_is_name(item) for item in items)
    return False


def _difference(equation: Equation) -> Scalar:
    left, right = equation.sides
    assert isinstance(left, Scalar)
    assert isinstance(right, Scalar)
    return total(left, negate(right))


def _proportional(pred: Scalar, gold: Scalar, same_value: SameValue) -> bool:
    """Whether ``pred = c gold`` for a constant c other than zero: pred(x) gold(x0) = gold(x) pred(x0) for all x."""
    names = sorted(free_symbols(gold))
    if not names or free_symbols(pred) != frozenset(names):
        return False
    at = {name: Fraction(2 * index + 3, 7 + index) for index, name in enumerate(names)}
    pred_at, gold_at = substitute(pred, at), substitute(gold, at)
    if same_value(pred_at, ZERO) or same_value(gold_at, ZERO):
        return False
    return same_value(product(pred, gold_at), product(gold, pred_at))
