"""When two sets of real numbers, or two conditions, are the same."""

from collections.abc import Sequence

from deltarl.reward.equations import difference, proportional
from deltarl.reward.matching import Same, same_in_any_order, same_in_order
from deltarl.reward.realset import Piece, real_set, set_variable
from deltarl.reward.tree import (
    MINUS_ONE,
    Inequality,
    Interval,
    IntervalUnion,
    Junction,
    Mul,
    Node,
    Scalar,
    Seq,
    SetBuilder,
    Sym,
    product,
    substitute,
)


def same_set(pred: Node, gold: Node, same: Same) -> bool:
    """Whether two sets of reals, or two conditions, are the same; a gold set takes a pred that is solved, only."""
    variable, gold_variable = set_variable(pred), set_variable(gold)
    if variable is not None and gold_variable is not None and variable != gold_variable:
        return False
    if isinstance(pred, Seq) and pred.kind == "tuple" and len(pred.items) == 2:
        pred = Interval(*pred.items, True, True)
    pieces = real_set(pred)
    # Gold may be the question's: |x| < 3 is what (-3, 3) solves, and not the other way round.
    gold_pieces = real_set(gold) if pieces is None else real_set(gold, unsolved=True)
    if pieces is not None and gold_pieces is not None:
        return len(pieces) == len(gold_pieces) and all(
            _same_piece(piece, other, same) for piece, other in zip(pieces, gold_pieces, strict=True)
        )
    if pred == gold:
        return True
    if pieces is None and gold_pieces is not None and isinstance(pred, Inequality) and not _is_negated(pred):
        return False  # gold is solved, and pred is not
    match pred, gold:
        case (Seq("list", items), Inequality(sides, _, turned)) if all(isinstance(side, Sym) for side in sides):
            return len(sides) > 2 and items == (sides[::-1] if turned else sides)  # b < a < c as b, a, c
        case (Junction(kind, parts), Junction(gold_kind, gold_parts)) if kind == gold_kind:
            return same_in_any_order(parts, gold_parts, same)
        case IntervalUnion(parts), IntervalUnion(gold_parts):
            return same_in_any_order(parts, gold_parts, same)
        case Inequality(), Inequality():
            return _same_inequality(pred, gold, same)
        case Interval(low, high, low_open, high_open), Interval(gold_low, gold_high, gold_low_open, gold_high_open):
            if (low_open, high_open) == (gold_low_open, gold_high_open):
                return same_in_order((low, high), (gold_low, gold_high), same)
        case SetBuilder(name, condition), SetBuilder(gold_name, gold_condition):
            return same(substitute(condition, {name: Sym(gold_name)}), gold_condition)
    return False


def _is_negated(node: Inequality) -> bool:
    """``-x > -1``: solved but for the sign."""
    return any(isinstance(side, Mul) and side == product(MINUS_ONE, side.factors[-1]) for side in node.sides)


def _same_inequality(pred: Inequality, gold: Inequality, same: Same) -> bool:
    if pred.ops != gold.ops:
        return False
    if same_in_order(pred.sides, gold.sides, same):
        return True
    sides: Sequence[Node] = (*pred.sides, *gold.sides)
    if len(pred.ops) > 1 or not all(isinstance(side, Scalar) for side in sides):
        return False
    return proportional(difference(pred.sides), difference(gold.sides), same, positive=pred.ops[0] != "ne")


def _same_piece(pred: Piece, gold: Piece, same: Same) -> bool:
    if (pred.low_open, pred.high_open) != (gold.low_open, gold.high_open):
        return False
    return same_in_order((pred.low, pred.high), (gold.low, gold.high), same)
