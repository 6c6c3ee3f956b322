"""What stands between brackets: groups, tuples, intervals, sets, set-builders, matrices and systems."""

from collections.abc import Callable

from deltarl.reward.expression import ExpressionParser
from deltarl.reward.limits import MAX_ITEMS, MAX_MATRIX_SIDE, LimitError, ParseError
from deltarl.reward.relations import REAL_LINE, set_named
from deltarl.reward.tree import (
    Const,
    Equation,
    Interval,
    Junction,
    Matrix,
    Node,
    Seq,
    SetBuilder,
    Sym,
    Text,
    contains,
)

SEPARATORS = frozenset([",", "and", "or"])
_CONDITION_WORDS = frozenset({"if", "when", "for", "where"})
_INFINITY = frozenset({"infinity"})


class BracketParser(ExpressionParser):
    """Parses brackets. What a value with its unit, and one element of an answer, are is the subclass's to say."""

    def side(self) -> Node:
        """A value: an expression with its unit, a text, a union."""
        raise NotImplementedError

    def item(self) -> Node:
        """An element of an answer: a value, an equation or an inequality."""
        raise NotImplementedError

    def words(self) -> str:
        """The text tokens that come next, as one text."""
        found = []
        while self.next.kind == "text":
            found.append(self.take().value)
        return " ".join(found)

    def items(self, parse: Callable[[], Node]) -> list[Node]:
        found = [parse()]
        while self.accept(","):
            found.append(parse())
            if len(found) > MAX_ITEMS:
                raise LimitError(f"more than {MAX_ITEMS} elements")
        return found

    def bracketed(self, opening: str) -> Node:
        if opening == r"\{":
            return self.braced_set()
        bars, self.bars = self.bars, 0
        items = self.items(self.item)
        self.bars = bars
        closing = self.take().value
        if opening == "]" or closing == "[":  # ]0, 1[ is (0, 1)
            opening, closing = ("(" if opening == "]" else opening), (")" if closing == "[" else closing)
            if len(items) != 2 or opening + closing not in ("()", "(]", "[)"):
                raise ParseError("a bracket turned around")
            return Interval(items[0], items[1], opening == "(", closing == ")")
        if opening == "langle":
            if closing != "rangle":
                raise ParseError("an angle bracket is not closed")
            return Seq("tuple", tuple(items))
        if closing not in (")", "]"):
            raise ParseError(f"a {opening!r} is not closed")
        if any(isinstance(item, Equation) for item in items):
            return self.system(items, opening + closing)
        if len(items) == 1 and opening + closing in ("()", "[]"):
            return items[0]
        infinite = any(contains(item, Const, _INFINITY) for item in items)
        if len(items) == 2 and (opening + closing != "()" or infinite):
            return Interval(items[0], items[1], opening == "(", closing == ")")
        if opening + closing not in ("()", "[]"):
            raise ParseError("an interval needs two ends")
        return Seq("tuple", tuple(items))

    def system(self, items: list[Node], brackets: str) -> Node:
        """``[x = 1, y = 2]``."""
        if brackets not in ("[]", "()") or not all(isinstance(item, Equation) for item in items):
            raise ParseError("equations in brackets")
        return items[0] if len(items) == 1 else Seq("list", tuple(items))

    def matrix(self) -> Node:
        cases = self.accept("cases")
        rows: list[list[Node]] = []
        while not self.accept("end"):
            row = [self.cell()]
            while self.accept("&"):
                row.append(self.cell())
            rows.append(row)
            if len(rows) > MAX_MATRIX_SIDE or len(row) > MAX_MATRIX_SIDE:
                raise LimitError(f"a matrix of more than {MAX_MATRIX_SIDE} rows or columns")
            if not self.accept("newline"):
                self.expect("end")
                break
        if not rows or any(len(row) != len(rows[0]) for row in rows):
            raise ParseError("a matrix whose rows differ in length")
        if len(rows[0]) == 1 and all(isinstance(row[0], Equation) for row in rows):
            return Seq("list", tuple(row[0] for row in rows))  # a system
        if cases and len(rows[0]) > 1:
            return Seq("set", tuple(Seq("tuple", tuple(row)) for row in rows))  # in any order
        return Matrix(tuple(map(tuple, rows)))

    def cell(self) -> Node:
        r"""An entry; in a case distinction a condition, perhaps behind ``\text{if}``, or ``\text{otherwise}``."""
        self.accept(",")
        if self.next.value in _CONDITION_WORDS and self.tokens[self.at + 1].kind != "text":
            self.take()
        node = self.item()
        self.accept(",")
        return node

    def braced_set(self) -> Node:
        if self.accept(r"\}"):
            return Seq("set", ())
        if self.next.kind == "sym" and self.tokens[self.at + 1].value in ("|", ":", "in"):
            return self.set_builder()
        items = self.items(self.item)
        self.expect(r"\}")
        if all(isinstance(item, Equation) for item in items):
            return self.system(items, "[]")
        if len(items) == 1 and isinstance(items[0], Interval):
            return items[0]  # {all real numbers}
        return Seq("set", tuple(items))

    def set_builder(self) -> SetBuilder:
        variable = self.take().value
        domain: Node = REAL_LINE
        if self.accept("in"):
            words = self.words() if self.next.kind == "text" else None
            domain = self.expression() if words is None else set_named(words) or Text(words)
        if not (self.accept("|") or self.accept(":") or self.accept(",")):
            raise ParseError("a set-builder without a condition")
        conditions, joins = [self.item()], set[str]()
        while self.next.kind == "op" and self.next.value in SEPARATORS:
            joins.add(self.take().value)
            conditions.append(self.item())
        self.expect(r"\}")
        real = Equation((Sym(variable), REAL_LINE))
        conditions = [condition for condition in conditions if condition != real] or conditions
        condition = conditions[0]
        if len(conditions) > 1:
            condition = Junction("or" if "or" in joins else "and", tuple(conditions))
        if domain != REAL_LINE:
            condition = Junction("and", (Equation((Sym(variable), domain)), condition))
        return SetBuilder(variable, condition)
