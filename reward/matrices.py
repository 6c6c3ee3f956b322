"""Sums and multiples of matrices, entry by entry, on top of those of scalars."""

from collections.abc import Callable

from deltarl.reward.limits import ParseError
from deltarl.reward.tree import Matrix, Node, Scalar, negate, product, total


def scalar(node: Node) -> Scalar:
    """``node``, refused unless arithmetic applies to it."""
    if not isinstance(node, Scalar):
        raise ParseError(f"arithmetic on a {type(node).__name__.lower()}")
    return node


def plus(left: Node, right: Node) -> Node:
    if isinstance(left, Matrix) and isinstance(right, Matrix):
        if [len(row) for row in left.rows] != [len(row) for row in right.rows]:
            raise ParseError("a sum of matrices of different shapes")
        pairs = [list(zip(*rows, strict=True)) for rows in zip(left.rows, right.rows, strict=True)]
        return Matrix(tuple(tuple(total(scalar(a), scalar(b)) for a, b in row) for row in pairs))
    return total(scalar(left), scalar(right))


def times(left: Node, right: Node) -> Node:
    if isinstance(left, Matrix) and not isinstance(right, Matrix):
        left, right = right, left
    if isinstance(right, Matrix):
        factor = scalar(left)
        return _each(right, lambda entry: product(factor, entry))
    return product(scalar(left), scalar(right))


def minus(node: Node) -> Node:
    return _each(node, negate) if isinstance(node, Matrix) else negate(scalar(node))


def _each(matrix: Matrix, change: Callable[[Scalar], Scalar]) -> Matrix:
    return Matrix(tuple(tuple(change(scalar(entry)) for entry in row) for row in matrix.rows))
