"""What it means for two answers to be the same, by the type of the gold: the expressions inside are another's job."""

from collections.abc import Callable, Sequence
from fractions import Fraction

from deltarl.reward.approximate import approximate
from deltarl.reward.realset import Piece, is_application, is_name, real_set, set_variable
from deltarl.reward.tree import (
    ZERO,
    Based,
    Const,
    Equation,
    Func,
    Inequality,
    Interval,
    IntervalUnion,
    Junction,
    Matrix,
    Mul,
    Node,
    Num,
    Pow,
    Quantity,
    Scalar,
    Seq,
    SetBuilder,
    SetLike,
    Sym,
    Text,
    contains,
    free_symbols,
    negate,
    product,
    reciprocal,
    substitute,
    total,
)
from deltarl.reward.units import conversion

SameValue = Callable[[Node, Node], bool]
"""Decides whether scalar ``pred`` equals scalar ``gold``; the order matters for decimals."""

_RADIANS_PER_DEGREE = Mul((Const("pi"), Num(Fraction(1, 180))))
_PARAMETERS = frozenset({"k", "l", "m", "n"})


def same_answer(pred: Node, gold: Node, same_value: SameValue) -> bool:
    """Whether answer ``pred`` is right where ``gold`` is.

    Tuples are ordered, lists and sets are not (repetitions count), sets of reals may be written as intervals, solved
    inequalities or set-builders with ends open or closed alike, units may be missing on one side but not conflict,
    ``x = 5`` stands for 5 but every link of a chain must hold, and an equation or inequality may be multiplied by a
    constant. Several values where gold is one are wrong.
    """
    pred = _renamed_parameter(pred, gold)
    if isinstance(pred, Equation) and isinstance(gold, Seq) and gold.kind == "list":
        return _match_unordered(_expanded([pred]), _expanded(gold.items), same_value)
    if isinstance(pred, Equation) or isinstance(gold, Equation):
        return _same_equation(pred, gold, same_value)
    if isinstance(pred, Quantity) or isinstance(gold, Quantity):
        return _same_quantity(pred, gold, same_value)
    if isinstance(gold, SetLike):
        return _same_set(pred, gold, same_value)
    match gold, pred:
        case Seq("tuple", gold_items), Seq("tuple", items):
            return _all_same(items, gold_items, same_value)
        case (Seq("tuple", (low, high)), _) if isinstance(pred, SetLike):
            return _same_set(pred, Interval(low, high, True, True), same_value)
        case Seq("ratio", gold_items), Seq("ratio", items):
            return _same_ratio(items, gold_items, same_value)
        case (Seq("list", gold_items), Seq("list", items)) if _names(gold_items) and not _any_equation(items):
            return _all_same(items, gold_items, same_value)  # x = 1, y = 2 as 1, 2
        case (Seq("tuple", gold_items), Seq("list", items)) if _names(items) == sorted(_names(items)) != []:
            return _all_same(items, gold_items, same_value)
        case (Seq("list", gold_items), Seq("tuple", items)) if _names(gold_items) == sorted(_names(gold_items)) != []:
            return _all_same(items, gold_items, same_value)
        case (Seq("set", (gold_item,)), _) if isinstance(pred, Scalar):
            return same_answer(pred, gold_item, same_value)
        case (_, Seq("set", (item,))) if isinstance(gold, Scalar):
            return same_answer(item, gold, same_value)
        case Seq(kind, gold_items), Seq(other, items) if not {"tuple", "ratio"} & {kind, other}:
            return _match_unordered(items, gold_items, same_value) or _match_unordered(
                _expanded(items), _expanded(gold_items), same_value
            )
        case Seq("set", _), _ if isinstance(pred, SetLike):
            return _same_set(pred, gold, same_value)
        case Matrix(gold_rows), Matrix(rows):
            return len(rows) == len(gold_rows) and all(
                _all_same(row, gold_row, same_value) for row, gold_row in zip(rows, gold_rows, strict=True)
            )
        case (Text(), Text()) | (Based(), Based()):
            return pred == gold
    return isinstance(pred, Scalar) and isinstance(gold, Scalar) and same_value(pred, gold)


def _renamed_parameter(pred: Node, gold: Node) -> Node:
    r"""``pred`` with the integer of a family of angles called as in gold: ``\frac{\pi}{6} + n \pi`` for k."""
    names, gold_names = free_symbols(pred), free_symbols(gold)
    if len(names) == len(gold_names) == 1 and names != gold_names and names | gold_names <= _PARAMETERS:
        (name,), (gold_name,) = names, gold_names
        if contains(gold, Const, frozenset({"pi"})) and contains(pred, Const, frozenset({"pi"})):
            return substitute(pred, {name: Sym(gold_name)})
    return pred


def _names(items: Sequence[Node]) -> list[str]:
    """The variables of ``x = 1, y = 2`` if that is what it is and they are all different."""
    names = [item.sides[0].name for item in items if isinstance(item, Equation) and isinstance(item.sides[0], Sym)]
    return names if len(set(names)) == len(items) else []


def _any_equation(items: Sequence[Node]) -> bool:
    return any(isinstance(item, Equation) for item in items)


def _expanded(items: Sequence[Node]) -> list[Node]:
    """``(f(n), g(n)) = (n, 1)`` in a list of equations as the two equations it is."""
    found: list[Node] = []
    for item in items:
        match item:
            case Equation((Seq("tuple", names), Seq("tuple", values))) if len(names) == len(values):
                found += [Equation(pair) for pair in zip(names, values, strict=True)]
            case _:
                found.append(item)
    return found


def _same_ratio(preds: Sequence[Node], golds: Sequence[Node], same_value: SameValue) -> bool:
    if len(preds) != len(golds):
        return False
    zeros = [(same_value(pred, ZERO), same_value(gold, ZERO)) for pred, gold in zip(preds, golds, strict=True)]
    if any(pred != gold for pred, gold in zeros) or all(pred for pred, _ in zeros):
        return False
    at = zeros.index((False, False))
    return all(
        same_value(product(pred, golds[at]), product(gold, preds[at])) for pred, gold in zip(preds, golds, strict=True)
    )


def _same_set(pred: Node, gold: Node, same_value: SameValue) -> bool:
    """Whether two sets of reals, or two conditions, are the same; a gold set takes a pred that is solved, only."""
    variable, gold_variable = set_variable(pred), set_variable(gold)
    if variable is not None and gold_variable is not None and variable != gold_variable:
        return False
    if isinstance(pred, Seq) and pred.kind == "tuple" and len(pred.items) == 2:
        pred = Interval(*pred.items, True, True)
    pieces, gold_pieces = real_set(pred), real_set(gold)
    if pieces is not None and gold_pieces is not None:
        return len(pieces) == len(gold_pieces) and all(
            _same_piece(piece, other, same_value) for piece, other in zip(pieces, gold_pieces, strict=True)
        )
    if pred == gold:
        return True
    match pred, gold:
        case (Junction(kind, parts), Junction(gold_kind, gold_parts)) if kind == gold_kind:
            return _match_unordered(parts, gold_parts, same_value)
        case IntervalUnion(parts), IntervalUnion(gold_parts):
            return _match_unordered(parts, gold_parts, same_value)
        case Inequality(sides, ops), Inequality(gold_sides, gold_ops):
            if ops == gold_ops and _all_same(sides, gold_sides, same_value):
                return True
            if ops == gold_ops and len(ops) == 1 and all(isinstance(s, Scalar) for s in (*sides, *gold_sides)):
                return _proportional(_difference(sides), _difference(gold_sides), same_value, positive=ops[0] != "ne")
        case Interval(low, high, low_open, high_open), Interval(gold_low, gold_high, gold_low_open, gold_high_open):
            if (low_open, high_open) == (gold_low_open, gold_high_open):
                return _all_same((low, high), (gold_low, gold_high), same_value)
        case SetBuilder(name, condition), SetBuilder(gold_name, gold_condition):
            return same_answer(substitute(condition, {name: Sym(gold_name)}), gold_condition, same_value)
    return False


def _same_piece(pred: Piece, gold: Piece, same_value: SameValue) -> bool:
    if (pred.low_open, pred.high_open) != (gold.low_open, gold.high_open):
        return False
    return _all_same((pred.low, pred.high), (gold.low, gold.high), same_value)


def _all_same(preds: Sequence[Node], golds: Sequence[Node], same_value: SameValue) -> bool:
    return len(preds) == len(golds) and all(
        same_answer(pred, gold, same_value) for pred, gold in zip(preds, golds, strict=True)
    )


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
            if unit == gold_unit:
                return same_answer(value, gold_value, same_value)
            factor = conversion(unit, gold_unit)
            return factor is not None and same_answer(_in_unit(value, factor), gold_value, same_value)
        case (Quantity(value, unit), _):
            return same_answer(value, gold, same_value) or (
                unit == "degree" and same_answer(Mul((value, _RADIANS_PER_DEGREE)), gold, same_value)
            )
        case (_, Quantity(gold_value, unit)):
            return same_answer(pred, gold_value, same_value) or (
                unit == "degree" and same_answer(pred, Mul((gold_value, _RADIANS_PER_DEGREE)), same_value)
            )
    raise AssertionError("one side is a quantity")


def _in_unit(value: Node, factor: Fraction) -> Node:
    return Num(value.value * factor) if isinstance(value, Num) else product(Num(factor), value)


def _same_equation(pred: Node, gold: Node, same_value: SameValue) -> bool:
    if pred == gold:
        return True
    name, values = _assignment(pred)
    gold_name, gold_values = _assignment(gold)
    if not isinstance(gold, Equation):
        if isinstance(gold, SetLike) and name is not None and set_variable(gold) not in (None, name):
            return False
        return all(same_answer(value, gold, same_value) for value in values)
    if not isinstance(pred, Equation):
        return _same_as_right_side(pred, gold, same_value)
    if name is not None and gold_name is not None:
        renamed = _renamed(name, values, gold_name, gold_values)
        if renamed is None:
            return False
        values = renamed
        if name == gold_name or _functions(name) == _functions(gold_name) != ():
            return all(same_answer(value, gold_values[-1], same_value) for value in values)
    if len(pred.sides) == len(gold.sides) == 2 and all(isinstance(s, Scalar) for s in (*pred.sides, *gold.sides)):
        return _proportional(_difference(pred.sides), _difference(gold.sides), same_value)
    return False


def _same_as_right_side(pred: Node, gold: Equation, same_value: SameValue) -> bool:
    """Whether ``pred``, which is no equation, is what gold says something is equal to."""
    first, last = gold.sides[0], gold.sides[-1]
    if _is_assigned(first):
        renamed = _renamed(first, (pred,), first, (last,))
        return renamed is not None and same_answer(renamed[0], last, same_value)
    if isinstance(first, Scalar) and isinstance(last, Scalar) and same_value(first, last):
        return same_answer(pred, last, same_value)  # gold shows a transformation: an identity
    return isinstance(pred, Scalar) and len(gold.sides) == 2 and _solves_for(pred, gold, same_value)


def _solves_for(pred: Scalar, gold: Equation, same_value: SameValue) -> bool:
    """Whether gold is linear in the one variable that ``pred`` lacks, and ``pred`` is what that variable equals."""
    missing = free_symbols(gold) - free_symbols(pred)
    if len(missing) != 1 or not free_symbols(pred) or not all(isinstance(side, Scalar) for side in gold.sides):
        return False
    (name,) = missing
    difference = _difference(gold.sides)
    at = [substitute(difference, {name: Num(Fraction(value))}) for value in (0, 1, 2)]
    slope = total(at[1], negate(_scalar(at[0])))
    if not same_value(total(at[2], negate(_scalar(at[1]))), slope) or same_value(slope, ZERO):
        return False
    return same_value(pred, product(negate(_scalar(at[0])), reciprocal(slope)))


def _assignment(node: Node) -> tuple[Node | None, tuple[Node, ...]]:
    """The name an equation assigns to, if its first side is one, and the sides that must all be the answer."""
    if not isinstance(node, Equation):
        return None, (node,)
    first = node.sides[0]
    return (first, node.sides[1:]) if _is_assigned(first) else (None, node.sides)


def _is_assigned(node: Node) -> bool:
    match node:
        case Text():
            return True  # a label
        case Mul((Sym(name), Sym() | Num() as argument)) if is_application(name, argument):
            return True
        case Seq("tuple", items):
            return all(_is_assigned(item) for item in items)
    return is_name(node) or (not isinstance(node, Sym) and _is_measure(node))


def _is_measure(node: Node) -> bool:
    """A quantity called by capital letters: ``|AB|``, ``NO/BO``, ``V_1 : V_2``."""
    match node:
        case Func("abs", (inner,)):
            return _is_measure(inner)
        case Mul(factors):
            return all(_is_measure(factor) for factor in factors)
        case Pow(base, Num(value)):
            return value == -1 and _is_measure(base)
        case Sym(name):
            return name[0].isupper()
    return False


def _renamed(
    name: Node, values: tuple[Node, ...], gold_name: Node, gold_values: tuple[Node, ...]
) -> tuple[Node, ...] | None:
    """``values`` with the argument of a function, and one free constant, called as in gold: f(z) = z for f(x) = x.

    None where a name of gold's arguments means something else in them already.
    """
    arguments, gold_arguments = _arguments(name), _arguments(gold_name)
    if arguments is None or gold_arguments is None or len(arguments) != len(gold_arguments):
        return values
    renaming: dict[str, Scalar] = {}
    for argument, gold_argument in zip(arguments, gold_arguments, strict=True):
        if renaming.setdefault(argument, Sym(gold_argument)) != Sym(gold_argument):
            return values
    constants = free_symbols(Equation(values)) - set(arguments)
    if constants & (set(gold_arguments) - set(arguments)):
        return None
    gold_constants = free_symbols(Equation(gold_values)) - set(gold_arguments)
    odd, gold_odd = constants - gold_constants, gold_constants - constants
    if len(odd) == len(gold_odd) == 1 and not odd & set(gold_arguments):
        renaming[next(iter(odd))] = Sym(next(iter(gold_odd)))
    return tuple(substitute(value, renaming) for value in values)


def _functions(name: Node) -> tuple[str, ...]:
    """The functions of ``_arguments``: their letters alone."""
    match name:
        case Mul((Sym(function), Sym() as argument)) if is_application(function, argument):
            return (function,)
        case Seq("tuple", items):
            return tuple(function for item in items for function in _functions(item))
    return ()


def _arguments(name: Node) -> tuple[str, ...] | None:
    """The arguments of ``f(x)``, or of ``(f(x), g(x))`` one after the other."""
    match name:
        case Mul((Sym(function), Sym(argument) as node)) if is_application(function, node):
            return (argument,)
        case Seq("tuple", items):
            found = [_arguments(item) for item in items]
            return None if None in found else tuple(argument for part in found if part for argument in part)
    return None


def _difference(sides: Sequence[Node]) -> Scalar:
    left, right = sides
    return total(_scalar(left), negate(_scalar(right)))


def _scalar(node: Node) -> Scalar:
    assert isinstance(node, Scalar)
    return node


def _proportional(pred: Scalar, gold: Scalar, same_value: SameValue, positive: bool = False) -> bool:
    """Whether ``pred = c gold`` for a constant c other than zero: pred(x) gold(x0) = gold(x) pred(x0) for all x.

    With ``positive`` c must be above zero.
    """
    names = sorted(free_symbols(gold))
    if not names or free_symbols(pred) != frozenset(names):
        return False
    at: dict[str, Scalar] = {name: Num(Fraction(2 * index + 3, 7 + index)) for index, name in enumerate(names)}
    pred_at, gold_at = _scalar(substitute(pred, at)), _scalar(substitute(gold, at))
    if same_value(pred_at, ZERO) or same_value(gold_at, ZERO):
        return False
    if positive:
        signs = approximate(pred_at), approximate(gold_at)
        if None in signs or (signs[0] or 0) * (signs[1] or 0) <= 0:
            return False
    return same_value(product(pred, gold_at), product(gold, pred_at))
