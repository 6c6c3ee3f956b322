"""Why an answer that was found wrong differs from gold, as far as their trees show."""

from itertools import pairwise

from deltarl.reward.approximate import approximate, differ
from deltarl.reward.tree import (
    Based,
    Equation,
    Inequality,
    Interval,
    IntervalUnion,
    Junction,
    Node,
    Num,
    Quantity,
    Seq,
    Text,
    free_symbols,
    is_scalar,
    is_set_like,
)
from deltarl.reward.units import conversion
from deltarl.reward.verdict import Reason

_CLOSE = 0.02
"""Relative difference up to which two numbers, one of them a decimal, are taken to be roundings of one."""


def why_different(pred: Node, gold: Node) -> Reason:
    """The reason that fits best; ``DIFFERENT`` where none fits better."""
    if _is_false_chain(pred):
        return Reason.FALSE_CHAIN
    value, gold_value = _value(pred), _value(gold)
    if _is_several(value) and (is_scalar(gold_value) or isinstance(gold_value, (Quantity, Text, Based))):
        return Reason.AMBIGUOUS
    if _units_conflict(value, gold_value):
        return Reason.UNIT_CONFLICT
    value, gold_value = _bare(value), _bare(gold_value)
    if _kind(value) != _kind(gold_value):
        return Reason.TYPE_MISMATCH
    if _is_rounded_otherwise(value, gold_value):
        return Reason.PRECISION
    return Reason.DIFFERENT


def _is_false_chain(node: Node) -> bool:
    return isinstance(node, Equation) and any(_certainly_differ(left, right) for left, right in pairwise(node.sides))


def _certainly_differ(left: Node, right: Node) -> bool:
    if not (is_scalar(left) and is_scalar(right)) or free_symbols(left) or free_symbols(right):
        return False  # an equation to solve, or an assignment
    return differ(left, right)


def _value(node: Node) -> Node:
    """What a node says that something is: the last side of an equation."""
    return node.sides[-1] if isinstance(node, Equation) else node


def _bare(node: Node) -> Node:
    return node.value if isinstance(node, Quantity) else node


def _is_several(node: Node) -> bool:
    """Whether it leaves open which value is meant: a list, an interval, a condition."""
    if isinstance(node, Seq):
        return node.kind in ("list", "set") and len(node.items) > 1
    return isinstance(node, (Interval, IntervalUnion, Inequality, Junction))


def _units_conflict(pred: Node, gold: Node) -> bool:
    if not isinstance(pred, Quantity) or not isinstance(gold, Quantity) or pred.unit == gold.unit:
        return False
    return conversion(pred.unit, gold.unit) is None or _bare(pred) == _bare(gold)


def _kind(node: Node) -> str:
    """What sort of thing an answer is, as coarsely as ``structure`` compares."""
    if is_scalar(node):
        return "value"
    if is_set_like(node):
        return "set of reals"
    if isinstance(node, Seq):
        return "collection" if node.kind in ("list", "set") else node.kind
    return type(node).__name__


def _is_rounded_otherwise(pred: Node, gold: Node) -> bool:
    """Whether both are numbers, close to each other, and at least one has decimal places."""
    if not any(map(_has_places, (pred, gold))):
        return False
    left, right = approximate(pred), approximate(gold)
    return left is not None and right is not None and abs(left - right) <= _CLOSE * abs(right)


def _has_places(node: Node) -> bool:
    return isinstance(node, Num) and node.decimals is not None
