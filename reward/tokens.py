"""Normalised LaTeX or plain text to tokens."""

import re
from collections.abc import Callable
from string import ascii_letters, digits

from deltarl.reward.alphabet import CONSTANTS, FUNCTIONS, PAIRED_SIGNS, SHORT_WORDS, SYMBOL_COMMANDS
from deltarl.reward.commands import COMMANDS, CommandScanner
from deltarl.reward.limits import ParseError
from deltarl.reward.literals import NUMBER, NUMBER_IN_BRACKETS, without_separators
from deltarl.reward.scanner import BRACKETS, COMMA, END, FEWEST_LETTERS, LETTER_TOKENS, Token
from deltarl.reward.units import CURRENCY_WORDS, PLAIN_SYMBOLS, SYMBOLS
from deltarl.reward.vocabulary import spelled_number

_WHOLE = re.compile(r"[0-9]+(?![0-9.,{\\~ eE(_^snrt])")
"""A number that nothing follows that may belong to it."""
# Of groups none is possessive: Python 3.11.2's `re` loses its place in one that is left out.
_PLAIN = re.compile(
    r"[ \t\r\n~$]*+(?:([<>!]=|=[<>]|\*\*|[+\-/|:%=<>!*()\[\]{},;]|\^(?=\{?(?:[0-9A-Za-z+\-(]|\\[dt]?frac))"
    r"|[A-Za-z](?![A-Za-z]|\s?_|\s+[0-9])"
    r"|[0-9]++(?:\.[0-9]++(?!\())?(?![.eE_]| ?\{|[ ~][0-9]"
    r"|,(?:[0-9]{3}|\\)|\^\s*\{?\s*(?:\\|[snrt])|\\(?:[, m]|te|rm|overline|bar|dot)|st|nd|rd|th)"
    r"|\\(?:[A-Za-z]++(?!\s?_|\.|\s*\{\s*(?:d|\\(?:te|ma|rm)))|[{},;!: ]))|)"
)
"""Spaces, and a token that stands for itself or nothing: where a word, subscript, separator of digits may begin."""
_LETTERS = re.compile(r"[A-Za-z]+")
_PRIMES = re.compile(r"'+|\^\s*\{?\s*(?:\\prime\s*)+\}?")
_BASE = re.compile(r"_(?:\{([0-9]{1,2})\}|([0-9]{1,2}))")
_SPELLED_BASE = re.compile(r"_\{\s*\\(?:text|mathrm|rm)\s*\{\s*([A-Za-z]+)\s*\}\s*\}")
_ORDINAL = re.compile(
    r"\s*(?:\^\s*\{?\s*|(?<=[0-9]))(?:\\(?:mathrm|text|textsuperscript|rm)\s*\{\s*(?:st|nd|rd|th)\s*\}|(?:st|nd|rd|th)(?![A-Za-z]))\s*\}?"
)
_SET_BUILDER = re.compile(r"\||\\mid|:")
_NEXT_NUMBER = re.compile(r"\s+(?=[0-9])")
_LIST_GAP = re.compile(r"[0-9]\s*,\s")
_ARGUMENT = re.compile(r"[\s~]*(?:[A-Za-z0-9({\[|_^]|\\[A-Za-z{])")
_FIRST_OF_PAIR = frozenset(pair[0] for pair in PAIRED_SIGNS)


def tokenize(text: str) -> list[Token]:
    """The tokens of what ``normalize`` returned, ending in ``END``.

    Raises:
        ParseError: a character or command outside the grammar.
    """
    return _Tokenizer(text).run()


class _Tokenizer(CommandScanner):
    """Reads all of the text, each token by its first character unless it stands for itself."""

    def run(self) -> list[Token]:
        while self.plain() < len(self.text):
            step = _STEPS.get(self.text[self.at])
            if step is None or not step(self):
                raise ParseError(f"unexpected {self.text[self.at : self.at + 12]!r}")
        self.tokens.append(END)
        return self.tokens

    def plain(self) -> int:
        """Reads the tokens from here on that stand for themselves, and the spaces behind them; returns how far."""
        tokens = self.tokens
        for match in _PLAIN.finditer(self.text, self.at):
            part = match[1]
            token = _PLAIN_TOKENS.get(part)
            if token is None:
                if part is None or part[0] == "\\":
                    self.at = match.end() if part is None else match.start(1)
                    break
                tokens.append(Token("num", part))
            elif token is COMMA:
                if self.last() == COMMA:
                    self.at = match.start(1)
                    break
                tokens.append(token)
            elif part in _PLAIN_BRACKETS:
                self.at = match.end()
                self.append(token)
            elif token is not _SKIPPED:
                tokens.append(token)
        return self.at

    def number(self) -> bool:
        whole = _WHOLE.match(self.text, self.at)
        if whole:
            self.at = whole.end()
            return self.add("num", whole.group())
        match = self.match(NUMBER_IN_BRACKETS if self.openings and not self.commas_group() else NUMBER)
        if match is None:
            return False
        literal = without_separators(match.group())
        if not literal.isdigit():
            return self.add("num", literal)
        following = self.text[self.at : self.at + 1]
        if following == "_":
            base = self.match(_BASE)
            spelled = None if base else self.match(_SPELLED_BASE)
            if spelled and spelled_number(spelled[1].lower()):
                return self.add("based", f"{literal}_{spelled_number(spelled[1].lower())}")
            if base:
                return self.add("based", f"{literal}_{base[1] or base[2]}")
        elif following and following in "^\\snrt":
            self.ordinal(literal)
        return self.add("num", literal)

    def commas_group(self) -> bool:
        r"""Whether commas without a space group digits in the open set: ``\{1,000, 2,000\}``, ``\{x | x < 1,000\}``."""
        opening = self.openings[-1]
        if not self.text.startswith(r"\{", opening - 2):
            return False
        if _SET_BUILDER.search(self.text, opening, self.at):
            return True
        end = self.text.find("}", self.at)
        return _LIST_GAP.search(self.text, opening, end if end > 0 else len(self.text)) is not None

    def ordinal(self, literal: str) -> None:
        """Passes over the ending of 12th."""
        at = self.at
        match = self.match(_ORDINAL)
        ending = "th" if literal[-2:-1] == "1" else {"1": "st", "2": "nd", "3": "rd"}.get(literal[-1], "th")
        if match and ending not in match.group():
            self.at = at

    def dot(self) -> bool:
        """A decimal point, or the end of a sentence inside brackets."""
        if self.number():
            return True
        self.at += 1
        return self.text[self.at :].lstrip()[:1] in (")", "]", "}") or self.text.startswith((r"\}", r"\)"), self.at)

    def caret(self) -> bool:
        if self.degree():
            return True
        if self.last().kind == "sym":
            primes = self.match(_PRIMES)
            if primes:
                return self.prime(primes.group().count("prime"))
        return self.sign()

    def apostrophe(self) -> bool:
        primes = self.match(_PRIMES)
        return primes is not None and self.last().kind == "sym" and self.prime(len(primes.group()))

    def prime(self, count: int) -> bool:
        self.tokens[-1] = Token("sym", self.tokens[-1].value + "'" * count)
        return True

    def letters(self) -> bool:
        match = self.match(_LETTERS)
        if match is None:
            return False
        word = match.group()
        if word in SYMBOLS and self.last().kind == "num" and self.is_part_of_compound(word):
            return self.add("text", word)
        if len(word) == 1:
            return self.symbol(word) if self.subscript_follows() else self.add_letter(word)
        if word in PLAIN_SYMBOLS and self.last().kind == "num" and not self.argument_follows(word):
            return self.add("text", word)
        if word in FUNCTIONS:
            return self.add("func", FUNCTIONS[word])
        if word in CONSTANTS:
            return self.add("const", CONSTANTS[word])
        if word in CURRENCY_WORDS:
            self.at += self.text.startswith(".", self.at)
            return self.add("currency", CURRENCY_WORDS[word])
        if len(word) >= FEWEST_LETTERS:
            return self.add("text", word.casefold())
        capitals = word.isupper() and word != self.text.strip()  # NO/BO is a ratio of lengths
        if word == "mod" or (word.casefold() in SHORT_WORDS and not capitals):
            return self.words(word)
        # Short runs are products; only the last letter can carry the subscript.
        for letter in word[:-1]:
            self.add_letter(letter)
        return self.symbol(word[-1]) if self.subscript_follows() else self.add_letter(word[-1])

    def is_part_of_compound(self, word: str) -> bool:
        """Whether letters behind a number are a unit, as another number follows, or one in a unit came before."""
        if self.match(_NEXT_NUMBER):
            return True
        if word == "in" and self.text[self.at - 3].isspace() and not self.text[self.at :].strip():
            return True  # 63 in
        return word == "in" and len(self.tokens) > 2 and "text" in (self.tokens[-2].kind, self.tokens[-3].kind)

    def argument_follows(self, word: str) -> bool:
        """Whether a word that is a function as well as a unit, such as min, has an argument."""
        return word in FUNCTIONS and _ARGUMENT.match(self.text, self.at) is not None

    def sign(self) -> bool:
        char = self.text[self.at]
        if char in _FIRST_OF_PAIR:
            pair = PAIRED_SIGNS.get(self.text[self.at : self.at + 2])
            if pair:
                self.at += 2
                return self.add("op", pair)
        if char == "&" and self.environments <= 0:
            return False
        self.at += 1
        if char in ",;":
            if self.last() == COMMA:
                raise ParseError("two separators in a row")
            char = ","
        return self.add("op", char)


_SKIPPED = Token("skipped", "")
_PLAIN_TOKENS = {
    **{sign: Token("op", sign) for sign in "+-/|:%=<>!*()[]{}^"},
    **{pair: Token("op", op) for pair, op in PAIRED_SIGNS.items()},
    **dict.fromkeys(",;", COMMA),
    **LETTER_TOKENS,
    **{f"\\{name}": Token("sym", name) for name in SYMBOL_COMMANDS},
    **{f"\\{name}": token for name, token in COMMANDS.items()},
    **dict.fromkeys((f"\\{name}" for name in (*",;!: ", "left", "right", "quad", "qquad", "displaystyle")), _SKIPPED),
}
"""What ``_PLAIN`` finds, but for numbers and for the commands that take more than a look-up."""
_PLAIN_BRACKETS = frozenset(part for part, token in _PLAIN_TOKENS.items() if token.value in BRACKETS)

_Step = Callable[[_Tokenizer], bool]

_STEPS: dict[str, _Step] = {
    **dict.fromkeys(digits, _Tokenizer.number),
    **dict.fromkeys(ascii_letters, _Tokenizer.letters),
    **dict.fromkeys("+-*/|:%!_()[]{}=,;<>&", _Tokenizer.sign),
    ".": _Tokenizer.dot,
    "^": _Tokenizer.caret,
    "'": _Tokenizer.apostrophe,
    "\\": _Tokenizer.backslash,
}
"""What a token can be, by its first character."""
