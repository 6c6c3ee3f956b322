"""Expressions: operators, functions and TeX arguments, by Pratt's method."""

from abc import ABC, abstractmethod
from fractions import Fraction

from deltarl.reward.cursor import Cursor
from deltarl.reward.limits import MAX_ITEMS, ParseError
from deltarl.reward.matrices import minus, plus, scalar, times
from deltarl.reward.tokens import END, Token, number
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
    negate,
    product,
    reciprocal,
)

_SUM, _PRODUCT, _SIGN, _ARGUMENT, _POWER = 10, 20, 25, 30, 40
"""Binding powers; a function's argument without brackets binds tighter than a product."""

_HALF = Num(Fraction(1, 2))
_DEGREE = product(Const("pi"), Num(Fraction(1, 180)))
_OPERAND_OPS = frozenset(["(", "{", "[", "frac", "binom", "lfloor", "lceil", "begin"])


def percent(node: Scalar) -> Scalar:
    """A hundredth of ``node``; a literal keeps its decimal places."""
    if isinstance(node, Num):
        return Num(node.value / 100, None if node.decimals is None else node.decimals + 2)
    return product(node, Num(Fraction(1, 100)))


class ExpressionParser(Cursor, ABC):
    """Parses one expression. What stands between brackets, and what a unit means, is the subclass's to say."""

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.bars = 0
        self.arguments = 0
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
            token = self.next
            if token == Token("op", "-") and not isinstance(left, Scalar | Matrix):
                break  # a set without another
            if token.kind == "op" and token.value in "+-" and binding < _SUM:
                self.take()
                right = self.expression(_SUM)
                left = plus(left, right if token.value == "+" else minus(right))
            elif self.multiplies(token) and binding < _PRODUCT:
                self.take()
                right = self.expression(_PRODUCT)
                left = times(left, right if token.value == "*" else reciprocal(scalar(right)))
            elif self.postfix_follows():
                left = self.postfix(scalar(left))
            elif binding < _PRODUCT and self.operand_follows():
                left = times(left, self.expression(_PRODUCT))
            else:
                break
        self.depth -= 1
        return left

    def multiplies(self, token: Token) -> bool:
        return token.kind == "op" and (token.value in ("*", "/") or (token.value == ":" and self.divides))

    def operand_follows(self) -> bool:
        """Whether the next token can be the right factor of a multiplication without sign."""
        token = self.next
        if token.kind in ("num", "based"):
            if self.tokens[self.at - 1] == Token("op", "!") or self.exponent_ends():
                return True  # 2!3! and 2^{3}3^{2}, which nobody writes to mean anything else
            raise ParseError("a number follows without an operator")
        starts_bars = token == Token("op", "|") and not self.bars
        starts_operand = token.kind == "op" and token.value in _OPERAND_OPS
        return token.kind in ("sym", "const", "func") or starts_operand or starts_bars

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

    def postfix_follows(self) -> bool:
        return self.next.kind == "op" and self.next.value in ("^", "!", "%", "degree")

    def postfix(self, left: Scalar) -> Scalar:
        match self.take().value:
            case "^":
                return Pow(left, self.exponent())
            case "!":
                if self.next == Token("op", "!"):
                    raise ParseError("a double factorial")
                return Func("factorial", (left,))
            case "%":
                return percent(left)
            case _:
                if self.arguments:
                    return product(left, _DEGREE)
                self.note_unit("degree")
                return left

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
        raise ParseError("the answer ends too early" if token == END else f"unexpected {token.value[:20]!r}")

    def operator(self, op: str) -> Node:
        match op:
            case "+":
                return scalar(self.expression(_SIGN))
            case "-":
                return minus(self.expression(_SIGN))
            case "currency":
                self.note_unit("dollar")
                return self.expression(_POWER)
            case "(" | "[" | r"\{":
                return self.bracketed(op)
            case "{":
                inner = self.expression()
                if self.next == Token("op", ","):
                    return self.unescaped_set(inner)
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
            case "frac":
                numerator = self.tex_argument()
                return product(numerator, reciprocal(self.tex_argument()))
            case "binom":
                return Func("binom", (self.tex_argument(), self.tex_argument()))
        raise ParseError(f"unexpected {op!r}")

    def mixed(self, whole: Num) -> Num:
        r"""``2\frac{1}{2}`` or ``2 1/2`` is 5/2, unless a further factor makes it look like a product."""
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
        if whole.decimals is not None or whole.value.denominator != 1 or not (top.isdigit() and bottom.isdigit()):
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
                raise ParseError(f"more than {MAX_ITEMS} elements")
        self.expect("}")
        return Seq("set", tuple(items))

    def absolute(self) -> Node:
        self.bars += 1
        inner = scalar(self.expression())
        self.expect("|")
        self.bars -= 1
        return Func("abs", (inner,))

    def tex_argument(self, whole_number: bool = False) -> Scalar:
        r"""The argument of a command, ``^`` or ``_``: a group, or one token.

        As in TeX a bare number gives only its first digit (``\frac12``), but after ``^`` and ``_`` all of it, because
        plain notation (``2^10``) means that.
        """
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

    def function(self, name: str) -> Scalar:
        if name == "sqrt":
            return self.root()
        base = self.tex_argument(whole_number=True) if name == "log" and self.accept("_") else None
        power = self.tex_argument(whole_number=True) if self.accept("^") else None
        self.arguments += 1
        argument = self.function_argument()
        self.arguments -= 1
        if power == Num(Fraction(-1)) and name in ("sin", "cos", "tan"):
            return Func("arc" + name, (argument,))
        value: Scalar
        match name:
            case "exp":
                value = Pow(Const("e"), argument)
            case "log" | "lg":
                base = Num(Fraction(10)) if name == "lg" else base
                value = Func("ln", (argument,))
                value = value if base is None else product(value, reciprocal(Func("ln", (base,))))
            case _:
                value = Func(name, (argument,))
        return value if power is None else Pow(value, power)

    def function_argument(self) -> Scalar:
        r"""Brackets end the argument; otherwise it is the product that follows (``\sin 2x``), up to a function."""
        if self.next.value in ("(", "{", "[", "|"):
            return scalar(self.prefix())
        argument = scalar(self.expression(_ARGUMENT))
        while self.operand_follows() and self.next.kind != "func":
            argument = product(argument, scalar(self.expression(_ARGUMENT)))
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


def _constant(name: str) -> Const:
    match name:
        case "pi" | "e" | "i" | "infinity":
            return Const(name)
    raise ParseError(f"unknown constant {name!r}")
