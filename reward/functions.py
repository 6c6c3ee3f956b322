"""Functions and what is written like them: powers of functions, logarithms, roots, sums and products over an index."""

import re
from abc import ABC, abstractmethod
from fractions import Fraction

from deltarl.reward.cursor import Cursor
from deltarl.reward.limits import MAX_ITEMS, ParseError
from deltarl.reward.matrices import scalar
from deltarl.reward.scanner import Token
from deltarl.reward.tree import (
    BOUND,
    MINUS_ONE,
    OPERATION_NAMES,
    UNKNOWN_BASE,
    Const,
    Func,
    Node,
    Num,
    Pow,
    Scalar,
    Sym,
    free_symbols,
    negate,
    product,
    reciprocal,
    substitute,
)

SUM, PRODUCT, SIGN, ARGUMENT, POWER = 10, 20, 25, 30, 40
"""Binding powers; a function's argument without brackets binds tighter than a product."""

_HALF = Num(Fraction(1, 2))
_INVERSES = {name: "arc" + name for name in ("sin", "cos", "tan")} | {
    name: "ar" + name for name in ("sinh", "cosh", "tanh")
}


class FunctionParser(Cursor, ABC):
    """Parses functions and their arguments. What an expression is, is the subclass's to say."""

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.arguments = 0  # functions whose argument this is

    @abstractmethod
    def expression(self, binding: int = 0) -> Node:
        """An expression of what binds tighter than ``binding``."""

    @abstractmethod
    def prefix(self) -> Node:
        """An operand, with the signs before it."""

    @abstractmethod
    def tex_argument(self, whole_number: bool = False) -> Scalar:
        """The argument of a command: a group, or one token."""

    @abstractmethod
    def operand_follows(self) -> bool:
        """Whether the next token can be the right factor of a multiplication without sign."""

    def function(self, name: str) -> Scalar:
        if name == "sqrt":
            return self.root()
        if name in OPERATION_NAMES:
            return Func(name, self.arguments_of_operation())
        base = self.base() if name == "log" and self.accept("_") else None
        power = self.tex_argument(whole_number=True) if self.accept("^") else None
        self.arguments += 1
        argument = self.function_argument()
        self.arguments -= 1
        if power == MINUS_ONE and name in _INVERSES:
            return Func(_INVERSES[name], (argument,))
        value: Scalar
        match name:
            case "exp":
                value = Pow(Const("e"), argument)
            case "log" | "lg":
                base = Num(Fraction(10)) if name == "lg" else base or UNKNOWN_BASE
                value = product(Func("ln", (argument,)), reciprocal(Func("ln", (base,))))
            case _:
                value = Func(name, (argument,))
        return value if power is None else Pow(value, power)

    def base(self) -> Scalar:
        r"""The base of a logarithm; of ``\log_25`` it is 2, as nothing else is left for the argument."""
        token, following = self.tokens[self.at : self.at + 2]
        if token.kind == "num" and token.value.isdigit() and len(token.value) > 1 and not _begins_operand(following):
            self.tokens[self.at] = Token("num", token.value[1:])
            return Num(Fraction(int(token.value[0])))
        return self.tex_argument(whole_number=True)

    def arguments_of_operation(self) -> tuple[Scalar, ...]:
        r"""``(a, b, ...)`` or ``\{a, b, ...\}``."""
        braced = self.accept("{")
        closing = r"\}" if self.accept(r"\{") else ")"
        if closing == ")":
            self.expect("(")
        found = [scalar(self.expression())]
        while self.accept(",") and len(found) < MAX_ITEMS:
            found.append(scalar(self.expression()))
        self.expect(closing)
        if braced:
            self.expect("}")
        return tuple(found)

    def function_argument(self) -> Scalar:
        r"""Brackets end the argument; otherwise it is the product that follows (``\sin 2x``), up to a function."""
        if self.next.value in ("(", "{", "[", "|"):
            return scalar(self.prefix())
        argument = scalar(self.expression(ARGUMENT))
        while self.operand_follows() and self.next.kind != "func":
            argument = product(argument, scalar(self.expression(ARGUMENT)))
        return argument

    def root(self) -> Scalar:
        degree = None
        if self.accept("["):
            degree = scalar(self.expression())
            self.expect("]")
        radicand = self.tex_argument()
        if degree is None:
            return Pow(radicand, _HALF)
        odd = isinstance(degree, Num) and degree.value.denominator == 1 and degree.value % 2 == 1
        if odd and isinstance(radicand, Num) and radicand.value < 0:
            return negate(Pow(negate(radicand), reciprocal(degree)))  # the real root, not the principal one
        return Pow(radicand, reciprocal(degree))

    def big_operator(self, name: str) -> Func:
        r"""``\sum_{k=a}^{b}`` and the product that follows."""
        index, bounds = "", dict[str, Scalar]()
        while self.next.value in ("_", "^") and self.next.value not in bounds:
            side = self.take().value
            if side == "^":
                bounds[side] = self.tex_argument(whole_number=True)
            else:
                self.expect("{")
                index = self.take().value
                self.expect("=")
                bounds[side] = scalar(self.expression())
                self.expect("}")
        if len(bounds) < 2:
            raise ParseError(f"unknown command '\\{name}' without bounds")
        term = scalar(self.expression(SUM))
        return Func(name, (BOUND, bounds["_"], bounds["^"], _with_bound_index(term, index)))


def _begins_operand(token: Token) -> bool:
    return token.kind in ("num", "sym", "const", "func") or token.value in ("(", "{", "[", "|", "frac", "^")


def _with_bound_index(term: Scalar, index: str) -> Scalar:
    """``term`` with ``BOUND`` for the index, in subscripts too."""
    alone = re.compile(rf"(?<![A-Za-z]){re.escape(index)}(?![A-Za-z])")
    renamed: dict[str, Scalar] = {index: BOUND}
    for name in free_symbols(term):
        letter, underscore, subscript = name.partition("_")
        if underscore and alone.search(subscript):
            renamed[name] = Sym(f"{letter}_{alone.sub(BOUND.name, subscript)}")
    return scalar(substitute(term, renamed))
