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
    """Several values: an ordered tuple, a bare comma list or a set (both unordered)."""

    kind: Literal["tuple", "list", "set"]
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


Scalar = Num | Sym | Const | Add | Mul | Pow | Func
Node = Scalar | Based | Text | Quantity | Seq | Interval | IntervalUnion | Equation

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
        case IntervalUnion(parts=parts) | Equation(sides=parts):
            return parts
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


def substitute(node: Node, values: Mapping[str, Fraction]) -> Node:
    """``node`` with variables replaced by exact numbers; only scalars contain variables to replace."""
    match node:
        case Sym(name) if name in values:
            return Num(values[name])
        case Add(terms):
            return Add(tuple(substitute(term, values) for term in terms))
        case Mul(factors):
            return Mul(tuple(substitute(factor, values) for factor in factors))
        case Pow(base, exponent):
            return Pow(substitute(base, values), substitute(exponent, values))
        case Func(name, args):
            return Func(name, tuple(substitute(arg, values) for arg in args))
    return node
