"""A position in a token list, with the nesting bound."""

from deltarl.reward.limits import MAX_DEPTH, LimitError, ParseError
from deltarl.reward.scanner import END, Token


class Cursor:
    """Reads tokens one by one; ``END`` is never consumed. ``next`` is the token to be read."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def take(self) -> Token:
        token = self.tokens[self.at]
        if token is not END:
            self.at += 1
        return token

    def next_is(self, op: str) -> bool:
        kind, value = self.tokens[self.at]
        return value == op and kind == "op"

    def accept(self, op: str) -> bool:
        kind, value = self.tokens[self.at]
        if value == op and kind == "op":
            self.at += 1
            return True
        return False

    def expect(self, op: str) -> None:
        if not self.accept(op):
            raise ParseError(f"expected {op!r}, found {self.next.value[:20]!r}")

    def descend(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise LimitError(f"more than {MAX_DEPTH} levels")
