"""Whole answers: lists of values, equations and inequalities, labels, units, ratios and sets."""

import operator
from fractions import Fraction

from deltarl.reward.brackets import SEPARATORS, BracketParser
from deltarl.reward.compounds import compound, with_compounds
from deltarl.reward.expression import percent
from deltarl.reward.limits import MAX_ITEMS, LimitError, ParseError
from deltarl.reward.matrices import scalar
from deltarl.reward.realset import real_set
from deltarl.reward.relations import RELATIONS, approximation, joined, relation, remainder, set_named, union, without
from deltarl.reward.scanner import END, Token
from deltarl.reward.sets import same_set
from deltarl.reward.tree import (
    Equation,
    Matrix,
    Node,
    Num,
    Quantity,
    Residue,
    Scalar,
    Seq,
    SetLike,
    Text,
    product,
)
from deltarl.reward.units import unit_name
from deltarl.reward.vocabulary import MULTIPLES, spelled_number, takes_back

_MAX_UNIT_WORDS = 4
_COLON = Token("op", ":")
_OPENING, _CLOSING = frozenset(["(", "[", "{", r"\{", "begin"]), frozenset([")", "]", "}", r"\}", "end"])
_ENDS_OF_VALUE = SEPARATORS | RELATIONS | {"=", "in", "approx", "|"}
_LINKS = RELATIONS | {"=", "in", "approx"}
_SET_OPS = frozenset(["cup", "setminus", "-", ":", "over", "choose", "pmod", "mod", "("])
_PROBABILITIES = ("P", "E")
_EXTREMES = ("max", "min")
_OPENING_BRACKET, _EQUALS = Token("op", "("), Token("op", "=")
_UNITS_BELOW = tuple(Token("sym", letter) for letter in "hsmgL")
_PERCENT_WORDS = frozenset({"percent", "percentage", "pct"})


class AnswerParser(BracketParser):
    """Parses the tokens of one answer, in which no plus-minus sign is left."""

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.unit: str | None = None
        self.has_colon = _COLON in tokens

    def answer(self) -> Node:
        items = [self.item()]
        words = set[str]()
        while self.next.kind == "op" and self.next.value in SEPARATORS:
            words.add(self.take().value)
            items.append(self.item())
            if len(items) > MAX_ITEMS:
                raise LimitError(f"more than {MAX_ITEMS} elements")
        node = items[0] if len(items) == 1 else joined(items if "or" in words else with_compounds(items), words)
        if self.next_is(":") and isinstance(node, SetLike):
            node = self.in_two_notations(node)
        if self.next != END:
            raise ParseError(f"unexpected {self.next.value[:20]!r}")
        return node

    def item(self) -> Node:
        """One element of an answer: a value, ``x = value``, ``x in set``, a chain of them or of <, ``label: value``."""
        label = self.label()
        if label is not None:
            return Equation((label, self.item()))
        sides, ops = [self.side()], list[str]()
        while True:
            kind, link = self.tokens[self.at]
            if kind != "op" or link not in _LINKS:
                break
            self.at += 1
            if link == "approx":
                return approximation(sides, self.side())  # what came before is exact
            ops.append(link if link in RELATIONS else "=")
            sides.append(self.side())
        for name in sides[: len(ops)]:
            if isinstance(name, Text) and takes_back(name.words):
                raise ParseError("a name that takes the value back")
        return relation(sides, ops) if ops else sides[0]

    def in_two_notations(self, first: Node) -> Node:
        r"""``x < 3 : (-\infty, 3)``, where both are the same set."""
        self.expect(":")
        second = self.side()
        if real_set(first) is None or not same_set(second, first, operator.eq):
            raise ParseError("a set and another behind a colon")
        return second

    def label(self) -> Text | None:
        """``Minimum:``, ``min =``, ``Paolo:`` or ``P(X = 2) =``, which says what the value after it is."""
        kind, value = self.tokens[self.at]
        if kind == "sym":
            possible = value in _PROBABILITIES and self.tokens[self.at + 1] == _OPENING_BRACKET
            return self.probability() if possible else None
        if kind == "func":
            if value not in _EXTREMES or self.tokens[self.at + 1] != _EQUALS:
                return None
            self.at += 2
            return Text(value)
        at = self.at
        while self.tokens[at].kind == "text":
            at += 1
        if at == self.at or self.tokens[at] != _COLON:
            return None
        words = self.words()
        if takes_back(words) and set_named(words) is None:
            raise ParseError("a label that takes the value back")
        self.expect(":")
        return Text(words)

    def probability(self) -> Text | None:
        """``P(X = 2) =``, if a relation stands between the brackets."""
        values = [token.value for token in self.tokens]
        end = next((at for at in range(self.at + 2, len(values) - 1) if values[at] in ("(", ")")), 0)
        inside = values[self.at + 2 : end]
        if values[end : end + 2] != [")", "="] or not (RELATIONS | {"="}) & set(inside):
            return None
        label = Text(" ".join(values[self.at : end + 1]))
        self.at = end + 2
        return label

    def side(self) -> Node:
        """An expression with an optional unit or currency sign, a text, or a union of intervals."""
        outer_unit, self.unit = self.unit, None
        outer_divides, self.divides = self.divides, self.has_colon and self.colon_divides()
        if self.tokens[self.at][0] == "text":
            words = self.words()
            number = spelled_number(words)
            node: Node = set_named(words) or (Text(words) if number is None else Num(Fraction(number)))
        else:
            node = self.expression()
        node = self.with_operations(node)
        if not isinstance(node, Text):
            node = self.with_unit(node)
        self.unit, self.divides = outer_unit, outer_divides
        return node

    def with_operations(self, node: Node) -> Node:
        """``node`` with what may follow the first operand: more sets, the rest of a ratio, a modulus."""
        kind, op = self.tokens[self.at]
        if kind != "op" or op not in _SET_OPS:
            return node
        if self.next_is("cup"):
            parts = [node]
            while self.accept("cup"):
                parts.append(self.expression())
            node = union(parts)
        if self.accept("setminus") or (not isinstance(node, Scalar | Text | Matrix) and self.accept("-")):
            return without(node, self.expression())
        if self.next_is(":") and not self.interval_behind_colon():
            self.expect(":")
            return self.ratio(scalar(node))
        if self.next.value in ("over", "choose"):
            return self.infix_fraction(scalar(node))
        if self.accept("pmod"):
            return Residue(scalar(node), self.tex_argument(whole_number=True))
        if self.accept("mod"):
            return remainder(scalar(node), scalar(self.expression()))
        if self.next_is("(") and self.tokens[self.at + 1] == Token("op", "mod"):
            self.at += 2
            residue = Residue(scalar(node), scalar(self.expression()))
            self.expect(")")
            return residue
        return node

    def with_unit(self, node: Node) -> Node:
        """``node`` with the unit noted inside it, or the one that follows."""
        while self.next.kind in ("text", "currency"):
            words = self.words() if self.next.kind == "text" else self.take().value
            node, words = multiplied(node, words)
            if not words:
                continue
            self.note_unit(words)
            if self.accept("^"):
                self.unit = f"{self.unit}^{self.take().value}" if self.next.kind == "num" else self.braced_unit()
            if self.next_is("/") and self.tokens[self.at + 1] in _UNITS_BELOW:
                self.take()
                self.unit = f"{self.unit}/{self.take().value}"
            elif self.next_is("/") and self.tokens[self.at + 1].kind == "text":
                self.take()
                self.unit = f"{self.unit}/{unit_name(self.words())}"
        unit = self.unit
        if unit is None:
            return node
        node, unit = multiplied(node, unit)
        if unit in _PERCENT_WORDS:
            return percent(scalar(node))
        if not unit:
            return node
        quantity = Quantity(scalar(node), unit)
        return self.with_smaller_unit(quantity) or quantity

    def with_smaller_unit(self, quantity: Quantity) -> Quantity | None:
        """``quantity`` with what follows in a smaller unit: ``3 in`` behind ``5 ft``."""
        at = self.at + (self.next == Token("op", "and"))
        if self.tokens[at].kind != "num":
            return None
        start, self.at, unit, self.unit = self.at, at, self.unit, None
        both = compound(quantity, self.with_unit(self.expression()))
        if both is None:
            self.at, self.unit = start, unit
        return both

    def note_unit(self, unit: str) -> None:
        if len(unit.split()) > _MAX_UNIT_WORDS:
            raise ParseError("a sentence after the value")
        unit = unit_name(unit)
        if self.unit == "degree" and unit in ("celsius", "fahrenheit"):
            self.unit = unit
        if self.unit not in (None, unit):
            raise ParseError("two different units on one value")
        self.unit = unit

    def braced_unit(self) -> str:
        self.expect("{")
        power = self.take().value
        if power == "-":
            power += self.take().value
        self.expect("}")
        return f"{self.unit}^{power}"

    def ratio(self, first: Scalar) -> Seq:
        """``a : b : c``; a single colon divides."""
        parts: list[Node] = [first, scalar(self.expression())]
        while self.accept(":"):
            parts.append(scalar(self.expression()))
            if len(parts) > MAX_ITEMS:
                raise LimitError(f"more than {MAX_ITEMS} elements")
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
        return colons == 1 and not self.interval_behind_colon()

    def interval_behind_colon(self) -> bool:
        """Whether the next colon is followed by a pair in brackets: there it neither divides nor makes a ratio."""
        at = self.tokens.index(_COLON, self.at) + 1
        if self.tokens[at].value not in ("(", "["):
            return False
        values = [token.value for token in self.tokens[at:]]
        end = next((i for i, value in enumerate(values) if value in (")", "]")), 0)
        return "," in values[:end]


def multiplied(node: Node, words: str) -> tuple[Node, str]:
    """``node`` times the multiple that the words behind it begin with, and the other words: 5 and "million dollars"."""
    first, _, rest = words.partition(" ")
    multiple = MULTIPLES.get(first.removesuffix("s"))
    return (node, words) if multiple is None else (product(Num(Fraction(multiple)), scalar(node)), rest)
