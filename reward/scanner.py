"""Tokens, and what every reader of the text does: match a pattern, add a token, read words and symbols."""

import re
from string import ascii_letters
from typing import NamedTuple

from deltarl.reward.alphabet import CLOSING, CONSTANTS, FUNCTIONS, OPENING
from deltarl.reward.limits import ParseError


class Token(NamedTuple):
    """``kind`` is one of num, based, sym, const, func, text, currency, op, end; ``value`` is in canonical spelling."""

    kind: str
    value: str


END = Token("end", "")
COMMA = Token("op", ",")

FEWEST_LETTERS = 4
"""From here on, letters without a space are a word, and no product."""

_WORD = re.compile(r"[a-z]+(?:['\-][a-z]+)*")
_SUBSCRIPT = re.compile(
    r"\s*_\s*(?:\{\s*(?:\\(?:text|mathrm|rm)\s*\{)?([A-Za-z0-9+\-, \\]{1,24})\}?\}|([A-Za-z0-9])|\\([A-Za-z]+))"
)
BRACKETS = OPENING | CLOSING
LETTER_TOKENS = {letter: Token("const" if letter in CONSTANTS else "sym", letter) for letter in ascii_letters}


class Scanner:
    """A position in the text of an answer, and the tokens found before it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.openings: list[int] = []
        self.environments = 0
        self.tokens: list[Token] = []

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()
        return match

    def add(self, kind: str, value: str) -> bool:
        return self.append(Token(kind, value))

    def append(self, token: Token) -> bool:
        self.tokens.append(token)
        if token.value in BRACKETS and token.kind == "op":
            if token.value in OPENING:
                self.openings.append(self.at)
            elif self.openings:
                self.openings.pop()
        return True

    def last(self) -> Token:
        return self.tokens[-1] if self.tokens else END

    def words(self, content: str) -> bool:
        """Words, with ``and`` / ``or`` / a comma standing alone as the separator of a list."""
        words = " ".join(_WORD.findall(content.casefold()))
        if "?" in content:
            raise ParseError("a question")
        if words in ("and", "or"):
            if self.last() == COMMA:
                self.tokens.pop()
            return self.add("op", words)
        if not words and content.strip(" ,.;:'~\n\t"):
            raise ParseError(f"{content[:20]!r} as text")
        if not words and "," in content:
            return self.last() == COMMA or self.add("op", ",")
        if content.strip() in FUNCTIONS:
            return self.add("func", FUNCTIONS[content.strip()])
        if words == "mod":
            return self.add("op", words)
        if len(words) == 1:
            return self.add_letter(next(char for char in content if char.isalpha()))
        words = " ".join(word for word in words.split() if word not in ("a", "an", "the"))
        if not words:
            return True
        if words.endswith(" and") and self.last().kind == "num":
            self.add("text", words.removesuffix(" and"))  # 2 hours and
            return self.add("op", "and")
        self.add("text", words)
        return not content.rstrip().endswith(":") or self.add("op", ":")

    def subscript_follows(self) -> bool:
        return self.text[self.at : self.at + 2].lstrip()[:1] == "_" and _SUBSCRIPT.match(self.text, self.at) is not None

    def add_letter(self, letter: str) -> bool:
        self.tokens.append(LETTER_TOKENS[letter])
        return True

    def symbol(self, name: str) -> bool:
        if self.text[self.at : self.at + 2].lstrip()[:1] == "_":
            subscript = self.match(_SUBSCRIPT)
            if subscript:
                name += "_" + (subscript[1] or subscript[2] or subscript[3]).replace(" ", "").replace("\\", "")
        return self.add("sym", name)
