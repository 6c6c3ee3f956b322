"""Answer text to typed tree: closed grammar, no evaluation, every bound checked."""

from collections.abc import Callable

from deltarl.reward.expression import ExpressionParser, scalar
from deltarl.reward.limits import MAX_DEPTH, MAX_ITEMS, MAX_NODES, ParseError
from deltarl.reward.tokens import END, Token, tokenize
from deltarl.reward.tree import Const, Equation, Interval, IntervalUnion, Node, Quantity, Seq, Text, contains, measure

_MAX_UNIT_WORDS = 4


def parse_answer(text: str) -> Node:
    r"""The tree of one answer in LaTeX or plain notation; ``\pm`` gives the list of both values.

    Raises:
        ParseError: not in the grammar, or longer, deeper or larger than the limits.
    """
    tokens = tokenize(text)
    if len(tokens) == 3 and tokens[0].kind == "sym" and tokens[1] in (Token("op", ")"), Token("op", ":")):
        tokens = [tokens[0], END]  # a multiple-choice letter written "C)" or "C:"
    if any(token in (Token("op", "pm"), Token("op", "mp")) for token in tokens):
        upper, lower = (_AnswerParser(_choose_sign(tokens, pm, mp)).answer() for pm, mp in ("+-", "-+"))
        if isinstance(upper, Seq):
            raise ParseError("a plus-minus sign inside a list")
        node: Node = Seq("list", (upper, lower))
    else:
        node = _AnswerParser(tokens).answer()
    size, depth = measure(node)
    if size > MAX_NODES or depth > MAX_DEPTH:
        raise ParseError(f"more than {MAX_NODES} terms or {MAX_DEPTH} levels")
    return node


def _choose_sign(tokens: list[Token], plus_minus: str, minus_plus: str) -> list[Token]:
    signs = {Token("op", "pm"): Token("op", plus_minus), Token("op", "mp"): Token("op", minus_plus)}
    return [signs.get(token, token) for token in tokens]


class _AnswerParser(ExpressionParser):
    """Lists, equations, units and brackets around expressions."""

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.unit: str | None = None

    def answer(self) -> Node:
        items = self.items(self.item)
        if self.next != END:
            raise ParseError(f"unexpected {self.next.value[:20]!r}")
        return items[0] if len(items) == 1 else Seq("list", tuple(items))

    def items(self, parse: Callable[[], Node]) -> list[Node]:
        found = [parse()]
        while self.accept(","):
            found.append(parse())
            if len(found) > MAX_ITEMS:
                raise ParseError(f"more than {MAX_ITEMS} elements")
        return found

    def item(self) -> Node:
        """One element of an answer: a value, ``x = value``, ``x in set`` or a chain of equations."""
        sides = [self.side()]
        while self.accept("=") or self.accept("in"):
            sides.append(self.side())
        return sides[0] if len(sides) == 1 else Equation(tuple(sides))

    def side(self) -> Node:
        """An expression with an optional unit or currency sign, a text, or a union of intervals."""
        outer_unit, self.unit = self.unit, None
        if self.next.kind == "text":
            node: Node = Text(self.words())
        else:
            node = self.expression()
            if self.next == Token("op", "cup"):
                node = self.union(node)
            if self.next.kind == "text":
                self.note_unit(self.words())
                if self.accept("^"):
                    self.unit = f"{self.unit}^{self.take().value}" if self.next.kind == "num" else self.braced_unit()
            if self.unit is not None:
                node = Quantity(scalar(node), self.unit)
        self.unit = outer_unit
        return node

    def words(self) -> str:
        found = []
        while self.next.kind == "text":
            found.append(self.take().value)
        return " ".join(found)

    def note_unit(self, unit: str) -> None:
        if len(unit.split()) > _MAX_UNIT_WORDS:
            raise ParseError("a sentence after the value")
        unit = unit if len(unit) < 3 else unit.removesuffix("s")
        if self.unit not in (None, unit):
            raise ParseError("two different units on one value")
        self.unit = unit

    def braced_unit(self) -> str:
        self.expect("{")
        power = self.take().value
        self.expect("}")
        return f"{self.unit}^{power}"

    def union(self, first: Node) -> Node:
        parts = [first]
        while self.accept("cup"):
            parts.append(self.expression())
        return IntervalUnion(tuple(_as_interval(part) for part in parts))

    def bracketed(self, opening: str) -> Node:
        if opening == r"\{":
            return self.braced_set()
        bars, self.bars = self.bars, 0
        items = self.items(self.side)
        self.bars = bars
        closing = self.take().value
        if closing not in (")", "]"):
            raise ParseError(f"a {opening!r} is not closed")
        if len(items) == 1 and opening + closing in ("()", "[]"):
            return items[0]
        infinite = any(contains(item, Const, frozenset({"infinity"})) for item in items)
        if len(items) == 2 and (opening + closing != "()" or infinite):
            return Interval(items[0], items[1], opening == "(", closing == ")")
        if opening + closing not in ("()", "[]"):
            raise ParseError("an interval needs two ends")
        return Seq("tuple", tuple(items))

    def braced_set(self) -> Node:
        if self.accept(r"\}"):
            return Seq("set", ())
        items = self.items(self.side)
        self.expect(r"\}")
        return Seq("set", tuple(items))


def _as_interval(node: Node) -> Node:
    match node:
        case Seq("tuple", (low, high)):
            return Interval(low, high, low_open=True, high_open=True)
        case Interval() | Seq("set", _):
            return node
    raise ParseError("a union of something other than intervals and sets")
