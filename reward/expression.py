"""Expressions: operators, functions and TeX arguments, by Pratt's method."""

from abc import ABC, abstractmethod
from fractions import Fraction

from deltarl.reward.functions import POWER, PRODUCT, SIGN, SUM, FunctionParser
from deltarl.reward.limits import MAX_DEPTH, MAX_ITEMS, LimitError, ParseError
from deltarl.reward.literals import number
from deltarl.reward.matrices import determinant, inverse, minus, plus, scalar, times, transpose
from deltarl.reward.scanner import END, Token
from deltarl.reward.tree import (
    Based,
    Const,
    Func,
    Matrix,
    Node,
    Num,
    Pow,
    Scalar,
    Seq,
    Sym,
    is_scalar,
    negate,
    product,
    reciprocal,
)

_DEGREE = product(Const("pi"), Num(Fraction(1, 180)))
_OPERAND_OPS = frozenset(["(", "{", "[", "frac", "binom", "lfloor", "lceil", "begin", "sum", "prod"])
_BEHIND_INTERVALS = frozenset(["", "cup", "setminus", ",", "or", "and", ")", r"\}"])
_ENDS = frozenset([END.value, "}", ")", "]", r"\}", ",", "=", "&"])
"""What most expressions end before, so that no more need be asked about it."""
_POSTFIXES = frozenset(["^", "!", "%", "degree"])
_OPEN, _CLOSE = Token("op", "{"), Token("op", "}")
_TRANSPOSES = (Token("sym", "T"), Token("text", "T"))


def percent(node: Scalar) -> Scalar:
    """A hundredth of ``node``; a literal keeps its decimal places."""
    if isinstance(node, Num):
        return Num(node.value / 100, None if node.decimals is None else node.decimals + 2)
    return product(node, Num(Fraction(1, 100)))


class ExpressionParser(FunctionParser, ABC):
    """Parses one expression. What stands between brackets, and what a unit means, is the subclass's to say."""

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.bars = 0
        self.divides = False  # whether a colon does

    @abstractmethod
    def bracketed(self, opening: str) -> Node:
        """The group, tuple, interval or set whose opening bracket has just been taken."""

    @abstractmethod
    def matrix(self) -> Node:
        """The matrix whose ``begin`` has just been taken."""

    @abstractmethod
    def note_unit(self, unit: str) -> None:
        """Record the unit of the value being parsed."""

    def expression(self, binding: int = 0) -> Node:
        """Pratt's loop: a prefix, then every infix and postfix operator that binds tighter than ``binding``."""
        self.descend()
        left = self.prefix()
        while True:
            kind, op = self.tokens[self.at]
            if op in _ENDS:
                break
            if kind == "op":
                if op == "-" and not (is_scalar(left) or isinstance(left, Matrix)):
                    break  # a set without another
                if op in _POSTFIXES:
                    left = self.postfix(left)
                    continue
                if op in ("+", "-"):
                    if binding >= SUM:
                        break
                    self.at += 1
                    right = self.expression(SUM)
                    left = plus(left, right if op == "+" else minus(right))
                    continue
                if op in ("*", "/") or (op == ":" and self.divides):
                    if binding >= PRODUCT:
                        break
                    self.at += 1
                    right = self.expression(PRODUCT)
                    left = times(left, right if op == "*" else reciprocal(scalar(right)))
                    continue
            if binding >= PRODUCT or not self.operand_follows():
                break
            left = times(left, self.expression(PRODUCT))
        self.depth -= 1
        return left

    def operand_follows(self) -> bool:
        """Whether the next token can be the right factor of a multiplication without sign."""
        kind, value = self.tokens[self.at]
        if kind == "op":
            if value == "(":
                return self.tokens[self.at + 1] != Token("op", "mod")
            if value == "[" and self.tokens[self.at + 1].value in _BEHIND_INTERVALS:
                return False  # the end of ]0, 1[
            return value in _OPERAND_OPS or (value == "|" and not self.bars)
        if kind in ("num", "based"):
            if self.tokens[self.at - 1] == Token("op", "!") or self.exponent_ends():
                return True  # 2!3! and 2^{3}3^{2}, which nobody writes to mean anything else
            raise ParseError("a number follows without an operator")
        return kind in ("sym", "const", "func")

    def exponent_ends(self) -> bool:
        """Whether what was read last is an exponent in braces."""
        at = self.at - 1
        depth = 0
        while at > 0:
            value = self.tokens[at].value
            depth += (value == "}") - (value == "{")
            if depth == 0:
                return value == "{" and self.tokens[at - 1] == Token("op", "^")
            at -= 1
        return False

    def postfix(self, operand: Node) -> Node:
        op = self.take().value
        if op == "^" and isinstance(operand, Matrix):
            return self.power_of_matrix(operand)
        left = scalar(operand)
        match op:
            case "^":
                return counted(left, self.exponent())
            case "!":
                if self.next_is("!"):
                    raise ParseError("a double factorial")
                return Func("factorial", (left,))
            case "%":
                return percent(left)
            case _:
                if self.arguments:
                    return product(left, _DEGREE)
                self.note_unit("degree")
                return left

    def power_of_matrix(self, matrix: Matrix) -> Node:
        """A transpose is worked out. An inverse is not, so it only names what it is equated to."""
        braced = self.accept("{")
        if self.next in _TRANSPOSES:
            self.take()
            node: Node = transpose(matrix)
        elif self.accept("-") and self.take() == Token("num", "1"):
            node = inverse(matrix)
        else:
            raise ParseError("a power of a matrix")
        if braced:
            self.expect("}")
        return node

    def exponent(self) -> Scalar:
        """What follows a ``^``; a tower written without braces associates to the right."""
        self.descend()
        node = self.tex_argument(whole_number=True)
        if self.accept("^"):
            node = Pow(node, self.exponent())
        self.depth -= 1
        return node

    def prefix(self) -> Node:
        token = self.take()
        match token.kind:
            case "num":
                return self.mixed(number(token.value))
            case "based":
                digits, _, base = token.value.partition("_")
                return number(digits) if base == "10" else Based(digits.lstrip("0"), int(base))
            case "sym":
                return Sym(token.value)
            case "const":
                return _constant(token.value)
            case "func":
                return self.function(token.value)
            case "op":
                return self.operator(token.value)
            case "currency":
                self.note_unit(token.value)
                return self.expression(POWER)
        raise ParseError("the answer ends too early" if token == END else f"unexpected {token.value[:20]!r}")

    def operator(self, op: str) -> Node:
        match op:
            case "frac":
                numerator = self.tex_argument()
                return product(numerator, reciprocal(self.tex_argument()))
            case "+":
                return scalar(self.expression(SIGN))
            case "-":
                return minus(self.expression(SIGN))
            case "(" | "[" | "]" | r"\{" | "langle":
                return self.bracketed(op)
            case "{":
                inner = self.expression()
                if self.next_is(","):
                    return self.unescaped_set(inner)
                if self.next.value in ("over", "choose"):
                    inner = self.infix_fraction(scalar(inner))
                self.expect("}")
                return inner
            case "begin":
                return self.matrix()
            case "emptyset":
                return Seq("set", ())
            case "|":
                return self.absolute()
            case "lfloor" | "lceil":
                inner = scalar(self.expression())
                self.expect("r" + op[1:])
                return Func(op[1:], (inner,))
            case "sum" | "prod":
                return self.big_operator(op)
            case "binom":
                return Func("binom", (self.tex_argument(), self.tex_argument()))
        raise ParseError(f"unexpected {op!r}")

    def infix_fraction(self, above: Scalar) -> Scalar:
        r"""``a \over b`` and ``n \choose k``, behind ``above``."""
        op = self.take().value
        below = scalar(self.expression())
        return Func("binom", (above, below)) if op == "choose" else product(above, reciprocal(below))

    def mixed(self, whole: Num) -> Num:
        r"""``2\frac{1}{2}`` or ``2 1/2`` is 5/2, unless a further factor makes it look like a product."""
        kind, value = self.tokens[self.at]
        if whole.decimals is not None or (value != "frac" and kind != "num"):
            return whole
        values = [token.value for token in self.tokens[self.at : self.at + 7]]
        if values[:2] == ["frac", "{"] and values[3:5] == ["}", "{"] and values[6:] == ["}"]:
            top, bottom, length = values[2], values[5], 7
        elif values[:1] == ["frac"] and len(values) > 2 and len(values[1]) == 2:
            top, bottom, length = values[1][0], values[1][1], 2
        elif self.next.kind == "num" and values[1:2] == ["/"] and len(values) > 3:
            top, bottom, length = values[0], values[2], 3
        else:
            return whole
        after = self.tokens[self.at + length]
        if whole.value.denominator != 1 or not (top.isdigit() and bottom.isdigit()):
            return whole
        if after.kind in ("sym", "const", "func", "num") or after.value in ("(", "^", "frac", "{"):
            return whole
        fraction = number(top).value, number(bottom).value
        if not 0 < fraction[0] < fraction[1]:
            return whole
        self.at += length
        return Num(whole.value + fraction[0] / fraction[1])

    def unescaped_set(self, first: Node) -> Seq:
        """``{1, 2}``, where TeX would want the braces escaped."""
        items = [first]
        while self.accept(","):
            items.append(self.expression())
            if len(items) > MAX_ITEMS:
                raise LimitError(f"more than {MAX_ITEMS} elements")
        self.expect("}")
        return Seq("set", tuple(items))

    def absolute(self) -> Node:
        self.bars += 1
        inner = self.expression()
        self.expect("|")
        self.bars -= 1
        if isinstance(inner, Matrix):
            return determinant(inner)
        return Func("abs", (scalar(inner),))

    def tex_argument(self, whole_number: bool = False) -> Scalar:
        r"""The argument of a command, ``^`` or ``_``: a group, or one token.

        As in TeX a bare number gives only its first digit (``\frac12``), but after ``^`` and ``_`` all of it, because
        plain notation (``2^10``) means that.
        """
        at = self.at
        if self.tokens[at] == _OPEN and self.depth < MAX_DEPTH - 1:
            kind, value = self.tokens[at + 1]
            if kind in ("num", "sym") and self.tokens[at + 2] == _CLOSE:  # which is nearly always so
                self.at += 3
                return number(value) if kind == "num" else Sym(value)
        self.descend()
        token = self.next
        if token.kind == "num" and not whole_number and len(token.value) > 1:
            if not token.value.isdigit():
                raise ParseError("a decimal as an argument needs braces")
            self.tokens[self.at] = Token("num", token.value[1:])
            node: Node = number(token.value[0])
        elif token.kind == "num":
            node = number(self.take().value)
        elif whole_number and token.kind == "op" and token.value in "+-":
            self.take()
            argument = self.tex_argument(whole_number=True)
            node = argument if token.value == "+" else negate(argument)
        elif token.kind == "func" and token.value != "sqrt":
            raise ParseError("a function as an argument needs braces")
        else:
            node = self.prefix()
        self.depth -= 1
        return scalar(node)


def counted(base: Scalar, exponent: Scalar) -> Scalar:
    """The power; ``C_5^2`` and ``A_5^2`` are the numbers of combinations and arrangements."""
    match base, exponent:
        case Sym(name), Num(chosen) if name[:2] in ("C_", "A_") and name[2:].isdigit():
            size = Num(Fraction(int(name[2:])))
            if size.value >= 3 and 0 <= chosen <= size.value and chosen.denominator == 1:
                combinations = Func("binom", (size, exponent))
                return combinations if name[0] == "C" else product(combinations, Func("factorial", (exponent,)))
    return Pow(base, exponent)


def _constant(name: str) -> Const:
    match name:
        case "pi" | "e" | "i" | "infinity":
            return Const(name)
    raise ParseError(f"unknown constant {name!r}")
