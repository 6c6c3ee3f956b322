"""The typed tree of a parsed answer. Immutable and hashable, so ``==`` is structural equality."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from operator import attrgetter
from typing import Any, Literal, TypeGuard, TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def _node(cls: type[_T]) -> type[_T]:
    """A dataclass that is frozen to the type checker: frozen in fact, it would take three times as long to make."""
    return dataclass(slots=True, unsafe_hash=True)(cls)


@_node
class Num:
    """An exact rational. ``decimals`` is the number of decimal places it was written with; None if written exactly."""

    value: Fraction
    decimals: int | None = None


@_node
class Sym:
    """A variable; case and subscript are part of the name."""

    name: str


@_node
class Const:
    name: Literal["pi", "e", "i", "infinity"]


@_node
class Add:
    terms: tuple["Node", ...]


@_node
class Mul:
    factors: tuple["Node", ...]


@_node
class Pow:
    base: "Node"
    exponent: "Node"


@_node
class Func:
    """A function of ``FUNCTION_NAMES`` or ``OPERATION_NAMES`` applied to its arguments."""

    name: str
    args: tuple["Node", ...]


@_node
class Based:
    """An integer written in a base other than ten; only the same digits in the same base equal it."""

    digits: str
    base: int


@_node
class Text:
    """Words, case-folded, without articles and punctuation."""

    words: str


@_node
class Quantity:
    value: "Node"
    unit: str


@_node
class Residue:
    r"""``value \pmod{modulus}``."""

    value: "Node"
    modulus: "Node"


@_node
class Clock:
    """A time of day. ``half`` is ``am`` or ``pm``; without one ``3:45`` may be a ratio as well."""

    hour: int
    minute: int
    half: Literal["", "am", "pm"]


@_node
class Seq:
    """Several values: an ordered tuple, a bare comma list or a set (both unordered), a ratio of three or more.

    ``decimal`` is the number that a list such as ``3,14`` is where a comma is the decimal sign.
    """

    kind: Literal["tuple", "list", "set", "ratio"]
    items: tuple["Node", ...]
    decimal: Num | None = None


@_node
class Interval:
    low: "Node"
    high: "Node"
    low_open: bool
    high_open: bool


@_node
class IntervalUnion:
    parts: tuple["Node", ...]


@_node
class Equation:
    """``sides[0] = sides[1] = ...``, two sides or more."""

    sides: tuple["Node", ...]


@_node
class Inequality:
    """``sides[0] ops[0] sides[1] ops[1] ...`` with every op ``<``, ``<=`` or ``ne``: > and >= are turned around.

    ``turned`` says that they were, which makes no difference but to a list in the order of the sides.
    """

    sides: tuple["Node", ...]
    ops: tuple[str, ...]
    turned: bool = field(default=False, compare=False)


@_node
class Junction:
    """Conditions of which all (``and``) or at least one (``or``) holds."""

    kind: Literal["and", "or"]
    parts: tuple["Node", ...]


@_node
class SetBuilder:
    """The set of the values of a bound variable that fulfil ``condition``."""

    variable: str
    condition: "Node"


@_node
class Difference:
    """Set ``base`` without the elements of set ``removed``."""

    base: "Node"
    removed: "Node"


@_node
class Matrix:
    rows: tuple[tuple["Node", ...], ...]


@_node
class Inverse:
    """The inverse of a matrix, not worked out: it only names what it is equated to."""

    matrix: Matrix


Scalar = Num | Sym | Const | Add | Mul | Pow | Func
SetLike = Interval | IntervalUnion | Inequality | Junction | SetBuilder | Difference
Node = Scalar | Based | Text | Quantity | Residue | Clock | Seq | SetLike | Equation | Matrix | Inverse

_SCALARS = frozenset(Scalar.__args__)


def is_scalar(node: Node) -> TypeGuard[Scalar]:
    """``isinstance(node, Scalar)``, several times faster."""
    return type(node) in _SCALARS


_SETS = frozenset(SetLike.__args__)


def is_set_like(node: Node) -> TypeGuard[SetLike]:
    """``isinstance(node, SetLike)``, several times faster."""
    return type(node) in _SETS


FUNCTION_NAMES = frozenset({
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh",
    "arsinh", "arcosh", "artanh", "ln", "abs", "floor", "ceil", "factorial", "binom",
})  # fmt: skip
"""What ``Func.name`` may be. Roots, exponentials and other logarithms are rewritten while parsing."""

OPERATION_NAMES = frozenset({"max", "min", "gcd", "lcm", "mod", "sum", "prod", "det", "dot"})
"""What it may be besides: what a finished answer has only where gold has it too.

``mod`` has two arguments; ``sum`` and ``prod`` have ``BOUND``, its first and last value, and the term; ``det`` has the
entries of a square matrix, row by row; ``dot`` those of one vector and then of another; the others have any number,
unordered."""

BOUND = Sym("#")
"""The index of a sum, whatever it is called. Not a name that can be written."""

UNKNOWN_BASE = Sym("base of log")
r"""``\log x`` is ``\ln x`` over the logarithm of this: equal only to what it equals in every base."""

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
    if Mul not in map(type, factors):
        return Mul(factors)
    flat: list[Node] = []
    for factor in factors:
        flat.extend(factor.factors if isinstance(factor, Mul) else (factor,))
    return Mul(tuple(flat))


def total(*terms: Node) -> Add:
    """The sum, nested sums flattened."""
    if Add not in map(type, terms):
        return Add(terms)
    flat: list[Node] = []
    for term in terms:
        flat.extend(term.terms if isinstance(term, Add) else (term,))
    return Add(tuple(flat))


def children(node: Node) -> tuple[Node, ...]:
    """The direct sub-trees of ``node``."""
    parts = _CHILDREN.get(type(node))
    return parts(node) if parts else ()


# By type, because walking a tree is most of what is done with it, and a match statement tries case after case.
_CHILDREN: dict[type, Callable[[Any], tuple[Node, ...]]] = {
    Add: attrgetter("terms"),
    Mul: attrgetter("factors"),
    Pow: attrgetter("base", "exponent"),
    Func: attrgetter("args"),
    Quantity: lambda node: (node.value,),
    Residue: attrgetter("value", "modulus"),
    Seq: attrgetter("items"),
    Interval: attrgetter("low", "high"),
    IntervalUnion: attrgetter("parts"),
    Equation: attrgetter("sides"),
    Inequality: attrgetter("sides"),
    Junction: attrgetter("parts"),
    SetBuilder: lambda node: (node.condition,),
    Difference: attrgetter("base", "removed"),
    Matrix: lambda node: tuple(entry for row in node.rows for entry in row),
    Inverse: lambda node: (node.matrix,),
}


def measure(node: Node) -> tuple[int, int]:
    """Number of nodes and depth. Iterative: it is what protects recursive code from a deep tree."""
    size, deepest = 0, 0
    stack = [(node, 1)]
    while stack:
        current, depth = stack.pop()
        size += 1
        if depth > deepest:
            deepest = depth
        parts = _CHILDREN.get(type(current))
        if parts:
            stack.extend([(child, depth + 1) for child in parts(current)])
    return size, deepest


def contains(node: Node, kinds: type | tuple[type, ...], names: frozenset[str] = frozenset()) -> bool:
    """Whether a node of one of ``kinds`` occurs; with ``names``, one that also has one of these names."""
    stack = [node]
    while stack:
        current = stack.pop()
        if isinstance(current, kinds) and (
            not names or (isinstance(current, (Func, Const, Sym)) and current.name in names)
        ):
            return True
        parts = _CHILDREN.get(type(current))
        if parts:
            stack.extend(parts(current))
    return False


def free_symbols(node: Node) -> frozenset[str]:
    """Names of the variables that occur in ``node``."""
    found: set[str] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if isinstance(current, Sym):
            found.add(current.name)
        else:
            parts = _CHILDREN.get(type(current))
            if parts:
                stack.extend(parts(current))
    return frozenset(found)


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
        case Seq(kind, items, decimal):
            return Seq(kind, tuple(map(inside, items)), decimal)
        case Equation(sides):
            return Equation(tuple(map(inside, sides)))
        case Inequality(sides, ops, turned):
            return Inequality(tuple(map(inside, sides)), ops, turned)
        case Quantity(value, unit):
            return Quantity(inside(value), unit)
        case Residue(value, modulus):
            return Residue(inside(value), inside(modulus))
    return node
