"""The typed tree of a parsed answer. Immutable and hashable, so ``==`` is structural equality."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal


@dataclass(frozen=True, slots=True)
class Num:
    """An exact rational. ``decimals`` is the number of decimal places it was written with; None if written exactly."""

    value: Fraction
    decimals: int | None = None


@dataclass(frozen=True, slots=True)
class Sym:
    """A variable; case and subscript are part of the name."""

    name: str


@dataclass(frozen=True, slots=True)
class Const:
    name: Literal["pi", "e", "i", "infinity"]


@dataclass(frozen=True, slots=True)
class Add:
    terms: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Mul:
    factors: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Pow:
    base: "Node"
    exponent: "Node"


@dataclass(frozen=True, slots=True)
class Func:
    """A function of ``FUNCTION_NAMES`` applied to its arguments."""

    name: str
    args: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Based:
    """An integer written in a base other than ten; only the same digits in the same base equal it."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Text:
    """Words, case-folded, without articles and punctuation."""

    words: str


@dataclass(frozen=True, slots=True)
class Quantity:
    value: "Node"
    unit: str


@dataclass(frozen=True, slots=True)
class Seq:
    """Several values: an ordered tuple, a bare comma list or a set (both unordered), a ratio of three or more."""

    kind: Literal["tuple", "list", "set", "ratio"]
    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Interval:
    low: "Node"
    high: "Node"
    low_open: bool
    high_open: bool


@dataclass(frozen=True, slots=True)
class IntervalUnion:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Equation:
    """``sides[0] = sides[1] = ...``, two sides or more."""

    sides: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Inequality:
    """``sides[0] ops[0] sides[1] ops[1] ...`` with every op ``<``, ``<=`` or ``ne``: > and >= are turned around."""

    sides: tuple["Node", ...]
    ops: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Junction:
    """Conditions of which all (``and``) or at least one (``or``) holds."""

    kind: Literal["and", "or"]
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class SetBuilder:
    """The set of the values of a bound variable that fulfil ``condition``."""

    variable: str
    condition: "Node"


@dataclass(frozen=True, slots=True)
class Difference:
    """Set ``base`` without the elements of set ``removed``."""

    base: "Node"
    removed: "Node"


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple["Node", ...], ...]


Scalar = Num | Sym | Const | Add | Mul | Pow | Func
SetLike = Interval | IntervalUnion | Inequality | Junction | SetBuilder | Difference
Node = Scalar | Based | Text | Quantity | Seq | SetLike | Equation | Matrix

FUNCTION_NAMES = frozenset({
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh",
    "ln", "abs", "floor", "ceil", "factorial", "binom",
})  # fmt: skip
"""What ``Func.name`` may be. Roots, exponentials and other logarithms are rewritten while parsing."""

ZERO = Num(Fraction(0))
MINUS_ONE = Num(Fraction(-1))


def negate(node: Scalar) -> Scalar:
    """``-node``; a literal keeps its decimal places."""
    if isinstance(node, Num):
        return Num(-node.value, node.decimals)
    return product(MINUS_ONE, node)


def reciprocal(node: Scalar) -> Scalar:
    return Pow(node, MINUS_ONE)


def product(*factors: Node) -> Mul:
    """The product, nested products flattened so that a long one does not nest deeply."""
    flat: list[Node] = []
    for factor in factors:
        flat.extend(factor.factors if isinstance(factor, Mul) else (factor,))
    return Mul(tuple(flat))


def total(*terms: Node) -> Add:
    """The sum, nested sums flattened."""
    flat: list[Node] = []
    for term in terms:
        flat.extend(term.terms if isinstance(term, Add) else (term,))
    return Add(tuple(flat))


def children(node: Node) -> tuple[Node, ...]:
    """The direct sub-trees of ``node``."""
    match node:
        case Add(terms=parts) | Mul(factors=parts) | Func(args=parts) | Seq(items=parts):
            return parts
        case IntervalUnion(parts=parts) | Equation(sides=parts) | Inequality(sides=parts) | Junction(parts=parts):
            return parts
        case Matrix(rows):
            return tuple(entry for row in rows for entry in row)
        case SetBuilder(condition=inner):
            return (inner,)
        case Difference(base=left, removed=right):
            return (left, right)
        case Pow(base=left, exponent=right) | Interval(low=left, high=right):
            return (left, right)
        case Quantity(value=value):
            return (value,)
    return ()


def measure(node: Node) -> tuple[int, int]:
    """Number of nodes and depth. Iterative: it is what protects recursive code from a deep tree."""
    size, deepest = 0, 0
    stack = [(node, 1)]
    while stack:
        current, depth = stack.pop()
        size += 1
        deepest = max(deepest, depth)
        stack.extend((child, depth + 1) for child in children(current))
    return size, deepest


def contains(node: Node, kinds: type | tuple[type, ...], names: frozenset[str] = frozenset()) -> bool:
    """Whether a node of one of ``kinds`` occurs; with ``names``, one that also has one of these names."""
    if isinstance(node, kinds) and (not names or (isinstance(node, Func | Const | Sym) and node.name in names)):
        return True
    return any(contains(child, kinds, names) for child in children(node))


def free_symbols(node: Node) -> frozenset[str]:
    """Names of the variables that occur in ``node``."""
    if isinstance(node, Sym):
        return frozenset({node.name})
    return frozenset().union(*(free_symbols(child) for child in children(node)))


def substitute(node: Node, values: Mapping[str, Scalar]) -> Node:
    """``node`` with variables replaced; sets that bind a variable of that name are left alone."""

    def inside(part: Node) -> Node:
        return substitute(part, values)

    match node:
        case Sym(name):
            return values.get(name, node)
        case Add(terms):
            return Add(tuple(map(inside, terms)))
        case Mul(factors):
            return Mul(tuple(map(inside, factors)))
        case Pow(base, exponent):
            return Pow(inside(base), inside(exponent))
        case Func(name, args):
            return Func(name, tuple(map(inside, args)))
        case Seq(kind, items):
            return Seq(kind, tuple(map(inside, items)))
        case Equation(sides):
            return Equation(tuple(map(inside, sides)))
        case Inequality(sides, ops):
            return Inequality(tuple(map(inside, sides)), ops)
        case Quantity(value, unit):
            return Quantity(inside(value), unit)
    return node
