"""When two equations are the same, and what an equation assigns to a name."""

from collections.abc import Sequence
from fractions import Fraction

from deltarl.reward.approximate import approximate
from deltarl.reward.matching import Same
from deltarl.reward.matrices import is_inverse
from deltarl.reward.operators import DERIVATIVE_BY
from deltarl.reward.realset import is_application, is_name, set_variable
from deltarl.reward.tree import (
    OPERATION_NAMES,
    UNKNOWN_BASE,
    ZERO,
    Add,
    Equation,
    Func,
    Inverse,
    Matrix,
    Mul,
    Node,
    Num,
    Pow,
    Scalar,
    Seq,
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

_Y = Sym("y")
_COORDINATES = frozenset({"x", "y", "z", "r"})
_TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})


def same_equation(pred: Node, gold: Node, same: Same) -> bool:
    """Whether two answers, one of them an equation at least, are the same: up to a factor, or by what is assigned."""
    if isinstance(pred, Equation) and not _inverse_holds(pred, same):
        return False
    if pred == gold:
        return True
    pred, gold = _name_first(pred), _name_first(gold)
    name, values = _assignment(pred)
    gold_name, gold_values = _assignment(gold)
    if not isinstance(gold, Equation):
        if name is None and isinstance(pred, Equation) and _is_quantity_of_unknowns(pred.sides[0]):
            # Not where zero is on the other side: that is how the equation of a curve is written.
            values = values if free_symbols(gold) or pred.sides[-1] == ZERO else pred.sides[1:]
        if isinstance(gold, SetLike) and name is not None and set_variable(gold) not in (None, name):
            return False
        return _all_are(values, gold, same)
    if not isinstance(pred, Equation):
        return _same_as_right_side(pred, gold, same)
    if name is not None and gold_name is not None:
        renamed = _renamed(name, values, gold_name, gold_values)
        if renamed is None:
            return False
        values = renamed
        if name == gold_name or _functions(name) == _functions(gold_name) != () or _is_graph(name, gold_name):
            return _all_are(values, gold_values[-1], same)
    if isinstance(gold_name, Sym) and not free_symbols(gold.sides[-1]):
        return False
    if len(pred.sides) == len(gold.sides) == 2 and all(isinstance(s, Scalar) for s in (*pred.sides, *gold.sides)):
        return proportional(difference(pred.sides), difference(gold.sides), same)
    return False


def _inverse_holds(node: Equation, same: Same) -> bool:
    """Whether every matrix that is said to be the inverse of another is."""
    names = [side.matrix for side in node.sides if isinstance(side, Inverse)]
    values = [side for side in node.sides if isinstance(side, Matrix)]
    return all(is_inverse(name, value, same) for name in names for value in values)


def _name_first(node: Node) -> Node:
    """``x = 2`` for ``2 = x``."""
    match node:
        case Equation((first, last)) if is_name(last) and not _is_assigned(first):
            return Equation((last, first))
    return node


def _all_are(values: Sequence[Node], gold: Node, same: Same) -> bool:
    r"""Whether every link of a chain is ``gold``; before the last, an operation such as ``17 \bmod 5`` may stand."""
    last = values[-1]
    return all(
        same(value, gold) or (value is not last and contains(value, Func, OPERATION_NAMES) and same(last, value))
        for value in values
    )


def _same_as_right_side(pred: Node, gold: Equation, same: Same) -> bool:
    """Whether ``pred``, which is no equation, is what gold says something is equal to."""
    first, last = gold.sides[0], gold.sides[-1]
    if _is_assigned(first) or (_is_trigonometric(first) and not free_symbols(last)):
        renamed = _renamed(first, (pred,), first, (last,))
        return renamed is not None and same(renamed[0], last)
    if isinstance(first, Scalar) and isinstance(last, Scalar) and (same(first, last) or same(last, first)):
        return same(pred, last)  # gold shows a transformation: an identity
    if _is_of_letters(first) and not free_symbols(last) and isinstance(pred, Scalar) and same(pred, last):
        return True
    return isinstance(pred, Scalar) and len(gold.sides) == 2 and _solves_for(pred, gold, same)


def _is_of_letters(node: Node) -> bool:
    """``a + b``, ``mn``: a sum or product of bare names, none a coordinate, that a problem asks the value of."""
    match node:
        case Add(parts) | Mul(parts):
            return all(isinstance(part, Sym) and part.name not in _COORDINATES for part in parts)
    return False


def _solves_for(pred: Scalar, gold: Equation, same: Same) -> bool:
    """Whether gold is linear in the one variable that ``pred`` lacks, and ``pred`` is what that variable equals."""
    missing = free_symbols(gold) - free_symbols(pred)
    if len(missing) != 1 or not free_symbols(pred) or not all(isinstance(side, Scalar) for side in gold.sides):
        return False
    (name,) = missing
    excess = difference(gold.sides)
    at = [substitute(excess, {name: Num(Fraction(value))}) for value in (0, 1, 2)]
    slope = total(at[1], negate(_scalar(at[0])))
    if not same(total(at[2], negate(_scalar(at[1]))), slope) or same(slope, ZERO):
        return False
    return same(pred, product(negate(_scalar(at[0])), reciprocal(slope)))


def _assignment(node: Node) -> tuple[Node | None, tuple[Node, ...]]:
    """The name an equation assigns to, if its first side is one, and the sides that must all be the answer."""
    if not isinstance(node, Equation):
        return None, (node,)
    first = node.sides[0]
    if not _is_assigned(first):
        return None, node.sides
    values = node.sides[1:]
    while len(values) > 1 and isinstance(values[0], Sym) and not free_symbols(values[-1]):
        values = values[1:]  # y = x = 7
    return first, values


def _is_assigned(node: Node) -> bool:
    match node:
        case Text() | Inverse():
            return True  # a label
        case Mul(
            (Sym(name) | Pow(Sym(name), Num(Fraction(numerator=-1, denominator=1))), Sym() | Num() as argument)
        ) if is_application(name, argument):
            return True  # f(x), or its inverse
        case Seq("tuple", items):
            return all(_is_assigned(item) for item in items)
    if isinstance(node, Mul) and any(isinstance(part, Sym) and DERIVATIVE_BY in part.name for part in node.factors):
        return True
    return is_name(node) or (not isinstance(node, Sym) and _is_measure(node))


def _is_quantity_of_unknowns(node: Node) -> bool:
    r"""What an answer may say the value of, though it is no name: ``a + b``, ``xy``, ``\tan\theta``.

    Not ``2x``: an equation in one unknown is to be solved.
    """
    if isinstance(node, Seq | Text):
        return False
    return _is_trigonometric(node) or len(free_symbols(node) - {UNKNOWN_BASE.name}) > 1


def _is_trigonometric(node: Node) -> bool:
    r"""``\tan\theta``."""
    return isinstance(node, Func) and node.name in _TRIGONOMETRIC and is_name(node.args[0])


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


def _is_graph(name: Node, gold_name: Node) -> bool:
    """Whether one is ``y`` and the other ``f(x)``."""
    arguments = _arguments(gold_name) if name == _Y else _arguments(name) if gold_name == _Y else None
    return arguments == ("x",)


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


def difference(sides: Sequence[Node]) -> Scalar:
    """Left side minus right side."""
    left, right = sides
    return total(_scalar(left), negate(_scalar(right)))


def _scalar(node: Node) -> Scalar:
    assert isinstance(node, Scalar)
    return node


def proportional(pred: Scalar, gold: Scalar, same: Same, positive: bool = False) -> bool:
    """Whether ``pred = c gold`` for a constant c other than zero: pred(x) gold(x0) = gold(x) pred(x0) for all x.

    With ``positive`` c must be above zero.
    """
    names = sorted(free_symbols(gold))
    if not names or free_symbols(pred) != frozenset(names):
        return False
    # A point that no equation anyone writes down goes through.
    at: dict[str, Scalar] = {name: Num(Fraction(1009 + 2 * index, 97 + index)) for index, name in enumerate(names)}
    pred_at, gold_at = _scalar(substitute(pred, at)), _scalar(substitute(gold, at))
    if same(pred_at, ZERO) or same(gold_at, ZERO):
        return False
    if positive:
        signs = approximate(pred_at), approximate(gold_at)
        if None in signs or (signs[0] or 0) * (signs[1] or 0) <= 0:
            return False
    return same(product(pred, gold_at), product(gold, pred_at))
