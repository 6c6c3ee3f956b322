"""Answer text to typed tree: closed grammar, no evaluation, every bound checked."""

import re
from collections.abc import Callable
from fractions import Fraction

from deltarl.reward.approximate import approximate
from deltarl.reward.expression import ExpressionParser, percent
from deltarl.reward.limits import MAX_DEPTH, MAX_ITEMS, MAX_MATRIX_SIDE, MAX_NODES, ParseError
from deltarl.reward.matrices import scalar
from deltarl.reward.tokens import END, Token, tokenize
from deltarl.reward.tree import (
    ZERO,
    Const,
    Difference,
    Equation,
    Inequality,
    Interval,
    IntervalUnion,
    Junction,
    Matrix,
    Node,
    Num,
    Quantity,
    Scalar,
    Seq,
    SetBuilder,
    Sym,
    Text,
    contains,
    measure,
    negate,
    product,
)

_MAX_UNIT_WORDS = 4
_FEWEST_WORDS = 3
"""From here on, what is not mathematics is a sentence: right only where gold is the same one."""
_SEPARATORS = (",", "and", "or")
_RELATIONS = frozenset(["<", "<=", ">", ">=", "ne"])
_OPENING, _CLOSING = frozenset(["(", "[", "{", r"\{", "begin"]), frozenset([")", "]", "}", r"\}", "end"])
_ENDS_OF_VALUE = frozenset([*_SEPARATORS, *_RELATIONS, "=", "in", "approx", "|"])
_ROUGHLY = 0.02
_MULTIPLES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Words that change a value instead of saying of what it is.
_NO_UNITS = frozenset({
    "half", "halve", "third", "quarter", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "less",
    "more", "below", "above", "zero", "squared", "cubed", "factorial", "minus", "plus", "times", "is", "not",
    "incorrect", "wrong", "false",
})  # fmt: skip
_PERCENT_WORDS = frozenset({"percent", "percentage", "pct"})
_TIME = re.compile(r"\s*\$?([0-9]{1,2}):([0-5][0-9])\s*(?:\\text\{)?\s*([AaPp])?\.?\s*(?:[Mm]\.?)?\}?\$?\s*")
_PROSE = re.compile(r"[A-Za-z0-9\s,.;:!?'\"$()\-]+")
_LEADING_WORDS = ("for all", "for any", "for every", "for each", "where")


def parse_answer(text: str) -> Node:
    r"""The tree of one answer in LaTeX or plain notation; ``\pm`` gives the list of both values.

    Raises:
        ParseError: not in the grammar, or longer, deeper or larger than the limits.
    """
    time = _TIME.fullmatch(text)
    if time and (time[3] or time[2].startswith("0")):
        return Text(f"{int(time[1])}:{time[2]} {(time[3] or '').lower()}".strip())
    try:
        return _parse_mathematics(text)
    except ParseError:
        folded = text.casefold()
        if len(re.findall(r"[a-z]{2,}", folded)) < _FEWEST_WORDS or not _PROSE.fullmatch(text):
            raise
        return Text(" ".join(re.findall(r"[a-z]+|-?[0-9]+(?:\.[0-9]+)?|[()]", folded)))


def _parse_mathematics(text: str) -> Node:
    tokens = _without_remarks(tokenize(text))
    if len(tokens) == 3 and tokens[0].kind == "sym" and tokens[1] in (Token("op", ")"), Token("op", ":")):
        tokens = [tokens[0], END]  # a multiple-choice letter written "C)" or "C:"
    if any(token in (Token("op", "pm"), Token("op", "mp")) for token in tokens):
        upper, lower = (_AnswerParser(_choose_sign(tokens, pm, mp)).answer() for pm, mp in ("+-", "-+"))
        node: Node = _both(upper, lower)
    else:
        node = _AnswerParser(tokens).answer()
    size, depth = measure(node)
    if size > MAX_NODES or depth > MAX_DEPTH:
        raise ParseError(f"more than {MAX_NODES} terms or {MAX_DEPTH} levels")
    return node


def _without_remarks(tokens: list[Token]) -> list[Token]:
    r"""Without "for all x in Q" and "where k is an integer", up to the next comma, ``and`` or ``or``.

    Raises:
        ParseError: the remark is a condition, which changes the answer.
    """
    kept: list[Token] = []
    skipping = False
    for at, token in enumerate(tokens):
        if token in (END, Token("op", ","), Token("op", "and"), Token("op", "or")):
            skipping = False
        elif skipping and token.kind == "op" and (token.value in _RELATIONS or token.value == "="):
            raise ParseError("a condition after the answer")
        elif kept and token.kind == "text":
            words = " ".join(t.value for t in tokens[at : at + 2] if t.kind == "text")
            if words.startswith(_LEADING_WORDS):
                skipping = True
                if kept[-1] == Token("op", ","):
                    kept.pop()
        if not skipping:
            kept.append(token)
    return kept


def _both(upper: Node, lower: Node) -> Node:
    """The readings of an answer with its plus-minus signs as plus and as minus, in one list."""
    match upper, lower:
        case Seq(kind, uppers), Seq(_, lowers) if kind in ("list", "set"):
            items: list[Node] = []
            for pair in zip(uppers, lowers, strict=True):
                items += pair[:1] if pair[0] == pair[1] else pair
            if len(items) > MAX_ITEMS:
                raise ParseError(f"more than {MAX_ITEMS} elements")
            return Seq(kind, tuple(items))
    return Seq("list", (upper, lower))


def _choose_sign(tokens: list[Token], plus_minus: str, minus_plus: str) -> list[Token]:
    signs = {Token("op", "pm"): Token("op", plus_minus), Token("op", "mp"): Token("op", minus_plus)}
    return [signs.get(token, token) for token in tokens]


class _AnswerParser(ExpressionParser):
    """Lists, equations, units and brackets around expressions."""

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.unit: str | None = None

    def answer(self) -> Node:
        items = [self.item()]
        words = set()
        while self.next.kind == "op" and self.next.value in _SEPARATORS:
            words.add(self.take().value)
            items.append(self.item())
            if len(items) > MAX_ITEMS:
                raise ParseError(f"more than {MAX_ITEMS} elements")
        if self.next != END:
            raise ParseError(f"unexpected {self.next.value[:20]!r}")
        # "k in Z" says what k is; it is no part of the answer.
        items = [item for item in items if not _is_declaration(item)] or items
        if len(items) == 1:
            return items[0]
        if all(isinstance(item, Inequality) for item in items) and words <= {"and"}:
            return Junction("and", tuple(items))
        if all(isinstance(item, Inequality) for item in items) and "or" in words and "and" not in words:
            return Junction("or", tuple(items))
        return Seq("list", tuple(items))

    def items(self, parse: Callable[[], Node]) -> list[Node]:
        found = [parse()]
        while self.accept(","):
            found.append(parse())
            if len(found) > MAX_ITEMS:
                raise ParseError(f"more than {MAX_ITEMS} elements")
        return found

    def item(self) -> Node:
        """One element of an answer: a value, ``x = value``, ``x in set``, a chain of them or of <, ``label: value``."""
        label = self.label()
        if label is not None:
            return Equation((label, self.item()))
        sides, ops = [self.side()], list[str]()
        while self.next.kind == "op":
            if self.accept("=") or self.accept("in"):
                ops.append("=")
            elif self.next.value in _RELATIONS:
                ops.append(self.take().value)
            elif self.accept("approx"):
                value = self.side()
                if len(sides) == 1 and not contains(sides[0], (Const, Interval)) and _is_label_like(sides[0]):
                    return Equation((sides[0], value))
                _check_close(sides[-1], value)
                break  # what came before is exact
            else:
                break
            sides.append(self.side())
        if not ops:
            return sides[0]
        if set(ops) == {"="}:
            return Equation(tuple(sides))
        return _inequality(sides, ops)

    def label(self) -> Text | None:
        """``Minimum:`` or ``Paolo:``, which says what the value after it is."""
        at = self.at
        while self.tokens[at].kind == "text":
            at += 1
        if at == self.at or self.tokens[at] != Token("op", ":"):
            return None
        words = self.words()
        if "not" in words.split():
            raise ParseError("a label that takes the value back")
        self.expect(":")
        return Text(words)

    def side(self) -> Node:
        """An expression with an optional unit or currency sign, a text, or a union of intervals."""
        outer_unit, self.unit = self.unit, None
        outer_divides, self.divides = self.divides, self.colon_divides()
        if self.next.kind == "text":
            words = self.words()
            node: Node = REAL_SETS.get(words) or Text(words)
        else:
            node = self.expression()
            if self.next == Token("op", "cup"):
                node = self.union(node)
        if self.accept("setminus") or (not isinstance(node, Scalar | Text | Matrix) and self.accept("-")):
            node = Difference(node, self.expression())
        elif self.accept(":"):
            node = self.ratio(scalar(node))
        if not isinstance(node, Text):
            if self.next.kind == "text":
                self.note_unit(self.words())
                if self.accept("^"):
                    self.unit = f"{self.unit}^{self.take().value}" if self.next.kind == "num" else self.braced_unit()
            if self.unit is not None and _NO_UNITS & set(self.unit.split()):
                raise ParseError(f"{self.unit[:20]!r} after the value")
            if self.unit is not None:
                first, _, rest = self.unit.partition(" ")
                if first in _MULTIPLES:
                    node, self.unit = product(Num(Fraction(_MULTIPLES[first])), scalar(node)), rest or None
            if self.unit in _PERCENT_WORDS:
                node = percent(scalar(node))
            elif self.unit is not None:
                node = Quantity(scalar(node), self.unit)
        self.unit, self.divides = outer_unit, outer_divides
        return node

    def ratio(self, first: Scalar) -> Seq:
        """``a : b : c``; a single colon divides."""
        parts: list[Node] = [first, scalar(self.expression())]
        while self.accept(":"):
            parts.append(scalar(self.expression()))
            if len(parts) > MAX_ITEMS:
                raise ParseError(f"more than {MAX_ITEMS} elements")
        return Seq("ratio", tuple(parts))

    def colon_divides(self) -> bool:
        """Whether the value that begins here has one colon, outside of its brackets."""
        depth = colons = 0
        for token in self.tokens[self.at :]:
            if token.kind != "op":
                continue
            depth += (token.value in _OPENING) - (token.value in _CLOSING)
            if depth < 0 or (depth == 0 and token.value in _ENDS_OF_VALUE):
                break
            colons += depth == 0 and token.value == ":"
        return colons == 1

    def words(self) -> str:
        found = []
        while self.next.kind == "text":
            found.append(self.take().value)
        return " ".join(found)

    def note_unit(self, unit: str) -> None:
        if len(unit.split()) > _MAX_UNIT_WORDS:
            raise ParseError("a sentence after the value")
        unit = unit if len(unit) < 3 or "/" in unit else unit.removesuffix("s")
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

    def matrix(self) -> Node:
        rows: list[list[Node]] = []
        while not self.accept("end"):
            row = [self.side()]
            while self.accept("&"):
                row.append(self.side())
            rows.append(row)
            if len(rows) > MAX_MATRIX_SIDE or len(row) > MAX_MATRIX_SIDE:
                raise ParseError(f"a matrix of more than {MAX_MATRIX_SIDE} rows or columns")
            if not self.accept("newline"):
                self.expect("end")
                break
        if not rows or any(len(row) != len(rows[0]) for row in rows):
            raise ParseError("a matrix whose rows differ in length")
        return Matrix(tuple(map(tuple, rows)))

    def set_builder(self) -> SetBuilder:
        variable = self.take().value
        domain: Node = REAL_LINE
        if self.accept("in"):
            words = self.words() if self.next.kind == "text" else None
            domain = self.expression() if words is None else REAL_SETS.get(words) or Text(words)
        if not (self.accept("|") or self.accept(":") or self.accept(",")):
            raise ParseError("a set-builder without a condition")
        conditions, joined = [self.item()], set[str]()
        while self.next.kind == "op" and self.next.value in _SEPARATORS:
            joined.add(self.take().value)
            conditions.append(self.item())
        self.expect(r"\}")
        condition = conditions[0]
        if len(conditions) > 1:
            condition = Junction("or" if "or" in joined else "and", tuple(conditions))
        if domain != REAL_LINE:
            condition = Junction("and", (Equation((Sym(variable), domain)), condition))
        return SetBuilder(variable, condition)

    def braced_set(self) -> Node:
        if self.accept(r"\}"):
            return Seq("set", ())
        if self.next.kind == "sym" and self.tokens[self.at + 1].value in ("|", ":", "in"):
            return self.set_builder()
        items = self.items(self.side)
        self.expect(r"\}")
        return Seq("set", tuple(items))


_MINUS_INFINITY = negate(Const("infinity"))
REAL_LINE = Interval(_MINUS_INFINITY, Const("infinity"), True, True)
REAL_SETS = {
    "real numbers": REAL_LINE,
    "positive real numbers": Interval(ZERO, Const("infinity"), True, True),
    "negative real numbers": Interval(_MINUS_INFINITY, ZERO, True, True),
}


def _is_declaration(item: Node) -> bool:
    """``k in Z``."""
    match item:
        case Equation((_, Text(words))):
            return words == "integers"
        case Equation((_, Interval() as domain)):
            return domain == REAL_LINE
    return False


def _check_close(exact: Node, rounded: Node) -> None:
    left, right = approximate(exact), approximate(rounded)
    if left is not None and right is not None and abs(left - right) > _ROUGHLY * abs(left):
        raise ParseError("an approximation that is wrong")


def _is_label_like(node: Node) -> bool:
    return contains(node, Sym) and not contains(node, Num)


def _inequality(sides: list[Node], ops: list[str]) -> Inequality:
    if "=" in ops:
        raise ParseError("equalities and inequalities in one chain")
    if any(op in (">", ">=") for op in ops):
        if any(op in ("<", "<=") for op in ops):
            raise ParseError("an inequality that changes direction")
        turned = {">": "<", ">=": "<=", "ne": "ne"}
        sides, ops = sides[::-1], [turned[op] for op in reversed(ops)]
    elif ops == ["ne"] and not isinstance(sides[0], Sym):
        sides = sides[::-1]
    return Inequality(tuple(sides), tuple(ops))


def _as_interval(node: Node) -> Node:
    match node:
        case Seq("tuple", (low, high)):
            return Interval(low, high, low_open=True, high_open=True)
        case Interval() | Seq("set", _) | IntervalUnion():
            return node
    raise ParseError("a union of something other than intervals and sets")
