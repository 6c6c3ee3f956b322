"""Sets of real numbers in one form, whatever notation they were written in: intervals, inequalities, set-builders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from deltarl.reward.approximate import approximate
from deltarl.reward.tree import (
    Const,
    Difference,
    Func,
    Inequality,
    Interval,
    IntervalUnion,
    Junction,
    Mul,
    Node,
    Num,
    Scalar,
    Seq,
    SetBuilder,
    Sym,
    free_symbols,
    negate,
)

_INFINITY = Const("infinity")
_FUNCTION_LETTERS = frozenset({"f", "g", "h"})
_FUNCTIONS_OF = frozenset(
    {("y", "x"), ("y", "t"), ("x", "t"), ("s", "t"), ("v", "t"), ("u", "t"), ("p", "x"), ("q", "x")}
)


@dataclass(frozen=True, slots=True)
class Piece:
    """An interval, a single point having two equal closed ends; ``start`` and ``stop`` are its ends as floats."""

    low: Node
    high: Node
    low_open: bool
    high_open: bool
    start: float
    stop: float


def real_set(node: Node, unsolved: bool = False) -> tuple[Piece, ...] | None:
    """The pieces of a set of real numbers, in order, touching ones joined; None if it is not one.

    An inequality counts if it is solved: its variable stands alone between constants. So does a set-builder of such.
    With ``unsolved``, one of the absolute value of its variable counts as well.
    """
    if unsolved and isinstance(node, Inequality):
        node = _without_bars(node)
    pieces = _pieces(node)
    return None if pieces is None else _joined(pieces)


def set_variable(node: Node) -> Node | None:
    """What a solved inequality is about: its side that is not a constant. None for sets that name nothing."""
    match node:
        case Inequality(sides, _):
            names = [side for side in sides if is_name(side)]
            return names[0] if len(names) == 1 else None
        case Junction(_, parts):
            found = {set_variable(part) for part in parts}
            return found.pop() if len(found) == 1 else None
    return None


def is_name(node: Node) -> bool:
    """A variable, or a function of one: ``f(x)``."""
    match node:
        case Sym():
            return True
        case Mul((Sym(name), Sym() as argument)):
            return is_application(name, argument)
    return False


def is_application(function: str, argument: Sym | Num) -> bool:
    """Whether a product reads as a function of something: ``f(3)``, ``P(x)``, ``s(t)``, but not the length PQ."""
    letter = function.partition("_")[0].rstrip("'")
    if letter in _FUNCTION_LETTERS:
        return True
    if isinstance(argument, Num):
        return len(letter) == 1 and letter.isupper()
    return (letter, argument.name) in _FUNCTIONS_OF or (
        len(letter) == 1 and letter.isupper() and argument.name[0].islower() and len(argument.name) == 1
    )


def _pieces(node: Node) -> list[Piece] | None:
    match node:
        case Interval(low, high, low_open, high_open):
            return _one(low, high, low_open, high_open)
        case Seq("set", items):
            return _all([_one(item, item, False, False) for item in items])
        case Junction() if set_variable(node) is None:
            return None  # conditions on different things
        case IntervalUnion(parts) | Junction("or", parts):
            return _all([_pieces(part) for part in parts])
        case Junction("and", parts):
            return _intersection([_pieces(part) for part in parts])
        case SetBuilder(name, condition) if set_variable(condition) == Sym(name):
            return _pieces(condition)
        case Difference(base, Seq("set", items)):
            return _without(_pieces(base), items)
        case Inequality(sides, ops):
            return _solved(sides, ops)
    return None


def _solved(sides: Sequence[Node], ops: Sequence[str]) -> list[Piece] | None:
    names = [index for index, side in enumerate(sides) if is_name(side)]
    if len(names) != 1 or any(free_symbols(side) for side in sides if not is_name(side)):
        return None
    match len(sides), names[0]:
        case 2, 0 if ops[0] == "ne":
            return _around(sides[1])
        case 2, 0:
            return _one(negate(_INFINITY), sides[1], True, ops[0] == "<")
        case 2, 1 if ops[0] != "ne":
            return _one(sides[0], _INFINITY, ops[0] == "<", True)
        case 3, 1 if "ne" not in ops:
            return _one(sides[0], sides[2], ops[0] == "<", ops[1] == "<")
    return None


def _without_bars(node: Inequality) -> Node:
    r"""``1 \le |z| \le 2`` as the union of two inequalities of z, and others as they are."""
    at = [index for index, side in enumerate(node.sides) if isinstance(side, Func) and side.name == "abs"]
    if len(at) != 1 or "ne" in node.ops or any(approximate(s) is None for i, s in enumerate(node.sides) if i != at[0]):
        return node
    (inner,) = cast(Func, node.sides[at[0]]).args
    sides = list(node.sides)
    if at[0] == 0:  # |z| < b
        return Inequality((negate(cast(Scalar, sides[1])), inner, sides[1]), node.ops * 2)
    above = Inequality((*sides[:1], inner, *sides[2:]), node.ops)
    below = Inequality(
        tuple(negate(cast(Scalar, s)) if s is not inner else s for s in above.sides[::-1]), node.ops[::-1]
    )
    return Junction("or", (below, above))


def _around(point: Node) -> list[Piece] | None:
    return _all([_one(negate(_INFINITY), point, True, True), _one(point, _INFINITY, True, True)])


def _one(low: Node, high: Node, low_open: bool, high_open: bool) -> list[Piece] | None:
    start, stop = approximate(low), approximate(high)
    if start is None or stop is None:
        return None
    return [Piece(low, high, low_open, high_open, start, stop)]


def _all(parts: Sequence[list[Piece] | None]) -> list[Piece] | None:
    pieces: list[Piece] = []
    for part in parts:
        if part is None:
            return None
        pieces.extend(part)
    return pieces


def _intersection(parts: Sequence[list[Piece] | None]) -> list[Piece] | None:
    common = parts[0]
    for part in parts[1:]:
        if common is None or part is None:
            return None
        overlaps = [_overlap(left, right) for left in common for right in part]
        common = [overlap for overlap in overlaps if overlap is not None]
    return common


def _overlap(left: Piece, right: Piece) -> Piece | None:
    low = max(left, right, key=lambda piece: (piece.start, piece.low_open))
    high = min(left, right, key=lambda piece: (piece.stop, not piece.high_open))
    if low.start > high.stop or (low.start == high.stop and (low.low_open or high.high_open)):
        return None
    return Piece(low.low, high.high, low.low_open, high.high_open, low.start, high.stop)


def _without(base: list[Piece] | None, points: Sequence[Node]) -> list[Piece] | None:
    for point in points:
        at = approximate(point)
        if base is None or at is None:
            return None
        cut: list[Piece] = []
        for piece in base:
            if piece.start < at < piece.stop:
                cut.append(Piece(piece.low, point, piece.low_open, True, piece.start, at))
                cut.append(Piece(point, piece.high, True, piece.high_open, at, piece.stop))
            else:
                low_open, high_open = piece.low_open or piece.start == at, piece.high_open or piece.stop == at
                cut.append(Piece(piece.low, piece.high, low_open, high_open, piece.start, piece.stop))
        base = cut
    return base


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    found: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (piece.start, piece.low_open, piece.stop)):
        if found and (piece.start < found[-1].stop or _touch(found[-1], piece)):
            last = found.pop()
            high = max((last, piece), key=lambda part: (part.stop, not part.high_open))
            piece = Piece(last.low, high.high, last.low_open, high.high_open, last.start, high.stop)
        found.append(piece)
    return tuple(found)


def _touch(left: Piece, right: Piece) -> bool:
    """Whether one ends where the other begins, that point belonging to one of them."""
    return left.stop == right.start and not (left.high_open and right.low_open)
