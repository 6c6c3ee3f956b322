"""Arithmetic of matrices, entry by entry, on top of that of scalars."""

from collections.abc import Callable
from fractions import Fraction

from deltarl.reward.limits import MAX_NODES, ParseError, TooLargeError
from deltarl.reward.tree import Func, Inverse, Matrix, Node, Num, Scalar, is_scalar, measure, negate, product, total


def scalar(node: Node) -> Scalar:
    """``node``, refused unless arithmetic applies to it."""
    if not is_scalar(node):
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
    if isinstance(left, Matrix) and isinstance(right, Matrix):
        return _matrix_product(left, right)
    if isinstance(left, Matrix):
        left, right = right, left
    if isinstance(right, Matrix):
        factor = scalar(left)
        return _each(right, lambda entry: product(factor, entry))
    return product(scalar(left), scalar(right))


def transpose(matrix: Matrix) -> Matrix:
    return Matrix(tuple(zip(*matrix.rows, strict=True)))


def _matrix_product(left: Matrix, right: Matrix) -> Node:
    columns = list(zip(*right.rows, strict=True))
    if len(left.rows[0]) != len(right.rows):
        return _dot_product(left, right)
    # Every entry of the one is in the product as often as the other has columns: checked before, as powers double it.
    if measure(left)[0] * len(columns) + measure(right)[0] * len(left.rows) > MAX_NODES:
        raise ParseError("a product of large matrices")
    return Matrix(
        tuple(
            tuple(
                total(*(product(scalar(a), scalar(b)) for a, b in zip(row, column, strict=True))) for column in columns
            )
            for row in left.rows
        )
    )


def _dot_product(left: Matrix, right: Matrix) -> Func:
    """The product of two columns, or of two rows."""
    if len(left.rows) != len(right.rows) or len(left.rows[0]) != len(right.rows[0]):
        raise ParseError("a product of matrices whose shapes do not fit")
    if 1 not in (len(left.rows), len(left.rows[0])):
        raise ParseError("a product of matrices whose shapes do not fit")
    return Func("dot", (*_entries(left), *_entries(right)))


def determinant(matrix: Matrix) -> Func:
    if len(matrix.rows) != len(matrix.rows[0]):
        raise ParseError("the determinant of a matrix that is not square")
    return Func("det", _entries(matrix))


def is_inverse(matrix: Matrix, other: Matrix, same: Callable[[Node, Node], bool]) -> bool:
    """Whether the product of two matrices is the identity.

    Raises:
        TooLargeError: it is too large to be compared.
    """
    size = len(matrix.rows)
    if any(len(row) != size for row in matrix.rows) or [len(row) for row in other.rows] != [size] * size:
        return False
    try:
        found = _matrix_product(matrix, other)
    except ParseError as error:
        raise TooLargeError from error
    assert isinstance(found, Matrix)
    return all(same(entry, Num(Fraction(i == j))) for i, row in enumerate(found.rows) for j, entry in enumerate(row))


def inverse(matrix: Matrix) -> Inverse:
    if len(matrix.rows) != len(matrix.rows[0]):
        raise ParseError("the inverse of a matrix that is not square")
    return Inverse(matrix)


def _entries(matrix: Matrix) -> tuple[Scalar, ...]:
    return tuple(scalar(entry) for row in matrix.rows for entry in row)


def minus(node: Node) -> Node:
    return _each(node, negate) if isinstance(node, Matrix) else negate(scalar(node))


def _each(matrix: Matrix, change: Callable[[Scalar], Scalar]) -> Matrix:
    return Matrix(tuple(tuple(change(scalar(entry)) for entry in row) for row in matrix.rows))
