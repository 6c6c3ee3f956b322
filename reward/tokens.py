"""Normalised LaTeX or plain text to tokens."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from deltarl.reward.limits import MAX_DIGITS, MAX_LITERAL_DIGITS, ParseError
from deltarl.reward.normalize import GREEK_COMMANDS, normalize
from deltarl.reward.tree import FUNCTION_NAMES, Num


@dataclass(frozen=True, slots=True)
class Token:
    """``kind`` is one of num, based, sym, const, func, text, op, end; ``value`` is in canonical spelling."""

    kind: str
    value: str


END = Token("end", "")

_UNITS = "mm|cm|dm|m|km|in|ft|g|kg|mg|s|ms|min|h|km/h|m/s|J|kJ|N|W|kW|V|A|Hz|L|ml|mL|K|mol|Pa|kPa"
_UNIT_COMMAND = re.compile(rf"\\(?:mathrm|rm|operatorname|text|mbox)\s*\{{\s*~?\s*({_UNITS})\s*\}}")
_SKIP = re.compile(
    rf"(?:(?!{_UNIT_COMMAND.pattern})(?:"
    r"[\s~$]|\.(?=\s*[)\]}])|\\[,!;: \n()\[\]]|\\q?quad"
    r"|\\(?:left|right|[bB]igg?[lrm]?|displaystyle|limits|mathrm|mathbf|mathit|mathsf|boldsymbol|operatorname"
    r"|rm|bf)(?![A-Za-z])))+"
)
_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|mbox)\s*\{([^{}\\]*)\}")
_PLAIN_TEXT = re.compile(r"[A-Za-z\s'.,!?;:\-]*")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_LETTERS = re.compile(r"[A-Za-z]+")
_SUBSCRIPT = re.compile(r"_(?:\{([A-Za-z0-9+\-, ]{1,20})\}|([A-Za-z0-9]))")
_BASE = re.compile(r"_(?:\{([0-9]{1,2})\}|([0-9]{1,2}))")
_DEGREE = re.compile(r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![A-Za-z]))")

_ORDINAL = re.compile(
    r"\s*(?:\^\s*\{?\s*|(?<=[0-9]))(?:\\(?:mathrm|text|textsuperscript|rm)\s*\{\s*(?:st|nd|rd|th)\s*\}|(?:st|nd|rd|th)(?![A-Za-z]))\s*\}?"
)
_DOMAIN = re.compile(r"\\(?:mathbb|mathbf|Bbb)\s*\{?\s*([RZNQC])\s*\}?((?:_\{?[0-9+>* ]+\}?|\^\{?[+*-]\}?)*)")
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{\s*(?:[pbB]?matrix|smallmatrix|array)\s*\}(?:\s*\{[lcr| ]*\})?")

_FRACTION = r"(?:\.[0-9]*(?:\\overline\{[0-9]+\}|\([0-9]+\))|\.[0-9]+)"
_POWER_OF_TEN = r"(?:[eE][+-]?[0-9]{1,5}(?![0-9.]))"


def _number_pattern(separators: str) -> re.Pattern[str]:
    # Groups of three only, and not where one more comma-digit follows (1,234,5 is a list).
    grouped = rf"[1-9][0-9]{{0,2}}(?:(?:{separators})[0-9]{{3}})+(?![0-9]|,[0-9])"
    return re.compile(rf"(?:{grouped}|[0-9]+){_FRACTION}?{_POWER_OF_TEN}?|{_FRACTION}{_POWER_OF_TEN}?")


_NUMBER = _number_pattern(r",\\! ?|,|\{,\}|\\,| ")
# Between brackets a bare comma separates elements.
_NUMBER_IN_BRACKETS = _number_pattern(r",\\! ?|\{,\}|\\,| ")
_SEPARATOR = re.compile(r"\{,\}|\\,|,\\! ?|[ ,]")

_REWRITTEN = frozenset({"log", "lg", "exp", "sqrt"})
"""Functions the parser expresses by others."""
_FUNCTIONS = {name: name for name in (FUNCTION_NAMES | _REWRITTEN) - {"factorial", "binom"}}
_FUNCTIONS |= {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "ceiling": "ceil"}
_CONSTANTS = {"pi": "pi", "infty": "infinity", "infinity": "infinity", "inf": "infinity", "e": "e", "i": "i"}
_COMMAND_OPS = {
    "cdot": "*", "times": "*", "div": "/", "frac": "frac", "dfrac": "frac", "tfrac": "frac", "cfrac": "frac",
    "binom": "binom", "dbinom": "binom", "cup": "cup", "in": "in", "pm": "pm", "mp": "mp", "degree": "degree",
    "lbrace": r"\{", "rbrace": r"\}", "{": r"\{", "}": r"\}", "lvert": "|", "rvert": "|", "vert": "|",
    "lfloor": "lfloor", "rfloor": "rfloor", "lceil": "lceil", "rceil": "rceil", "emptyset": "emptyset",
    "varnothing": "emptyset", "leq": "<=", "le": "<=", "leqslant": "<=", "geq": ">=", "ge": ">=", "geqslant": ">=",
    "lt": "<", "gt": ">", "neq": "ne", "ne": "ne", "approx": "approx", "setminus": "setminus", "backslash": "setminus",
    "mid": "|", "land": "and", "wedge": "and", "lor": "or", "vee": "or",
    "%": "%", "$": "currency", "lbrack": "[", "rbrack": "]", "colon": ":",
}  # fmt: skip
_SHORT_WORDS = frozenset({"yes", "no", "or", "and", "odd", "for", "all", "any", "pct", "the", "is", "are", "our"})
_DOMAINS = {
    "R": "real numbers",
    "Z": "integers",
    "N": "natural numbers",
    "Q": "rational numbers",
    "C": "complex numbers",
}
_SIGNED_REALS = {"+": "positive real numbers", ">0": "positive real numbers", "-": "negative real numbers"}
_PAIRED_SIGNS = {"<=": "<=", ">=": ">=", "!=": "ne", "=<": "<=", "=>": ">="}
_PLAIN_UNITS = frozenset({
    "mm", "cm", "km", "kg", "mg", "ft", "lb", "lbs", "oz", "mph", "min", "mins", "hr", "hrs", "sec", "secs", "ml", "mL",
})  # fmt: skip
_OPEN, _CLOSE = frozenset(["(", "[", r"\{"]), frozenset([")", "]", r"\}"])
_ENDS_OF_OPERAND = _CLOSE | {"}", "!"}


def tokenize(text: str) -> list[Token]:
    """The tokens of an answer, ending in ``END``.

    Raises:
        ParseError: a character or command outside the grammar.
    """
    return _Tokenizer(normalize(text)).run()


class _Tokenizer:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.brackets = 0
        self.environments = 0
        self.tokens: list[Token] = []

    def run(self) -> list[Token]:
        steps: tuple[Callable[[], bool], ...] = (
            self._skip, self._number, self._degree, self._environment, self._domain, self._unit_command,
            self._text_command, self._command, self._letters, self._sign,
        )  # fmt: skip
        while self.at < len(self.text):
            if not any(step() for step in steps):
                raise ParseError(f"unexpected {self.text[self.at : self.at + 12]!r}")
        return [*self.tokens, END]

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()
        return match

    def _add(self, kind: str, value: str) -> bool:
        if kind == "op":
            self.brackets += (value in _OPEN) - (value in _CLOSE)
        self.tokens.append(Token(kind, value))
        return True

    def _skip(self) -> bool:
        return self._match(_SKIP) is not None

    def _degree(self) -> bool:
        return self._match(_DEGREE) is not None and self._add("op", "degree")

    def _number(self) -> bool:
        match = self._match(_NUMBER_IN_BRACKETS if self.brackets > 0 else _NUMBER)
        if match is None:
            return False
        literal = _SEPARATOR.sub("", match.group())
        base = self._match(_BASE) if literal.isdigit() else None
        if base:
            return self._add("based", f"{literal}_{base[1] or base[2]}")
        if literal.isdigit():
            self._ordinal(literal)
        return self._add("num", literal)

    def _ordinal(self, literal: str) -> None:
        """Passes over the ending of 12th."""
        at = self.at
        match = self._match(_ORDINAL)
        ending = "th" if literal[-2:-1] == "1" else {"1": "st", "2": "nd", "3": "rd"}.get(literal[-1], "th")
        if match and ending not in match.group():
            self.at = at

    def _environment(self) -> bool:
        match = self._match(_ENVIRONMENT)
        if match is None:
            return False
        self.environments += 1 if match[1] == "begin" else -1
        return self._add("op", match[1])

    def _domain(self) -> bool:
        match = self._match(_DOMAIN)
        if match is None:
            return False
        name, restriction = _DOMAINS[match[1]], match[2].strip("_^{} ").replace(" ", "")
        if restriction:
            name = _SIGNED_REALS.get(restriction, name + restriction) if match[1] == "R" else name + restriction
        return self._add("text", name)

    def _unit_command(self) -> bool:
        r"""``\mathrm{m}`` is a metre behind a number, and a variable elsewhere."""
        match = self._match(_UNIT_COMMAND)
        if match is None:
            return False
        last = self.tokens[-1] if self.tokens else END
        if last.kind in ("num", "const", "sym") or last.value in _ENDS_OF_OPERAND:
            return self._add("text", match[1])
        self.at = self.text.index("{", match.start())
        return True

    def _text_command(self) -> bool:
        match = self._match(_TEXT_COMMAND)
        if match is None:
            return False
        content = match[1]
        if not _PLAIN_TEXT.fullmatch(content):
            # Mathematics inside \text{}: read it as if the wrapper were not there.
            self.text = self.text[: match.start()] + " " + content + " " + self.text[match.end() :]
            self.at = match.start()
            return True
        return self._words(content)

    def _words(self, content: str) -> bool:
        """Words, with ``and`` / ``or`` / a comma standing alone as the separator of a list."""
        words = " ".join(re.findall(r"[a-z]+(?:['\-][a-z]+)*", content.casefold()))
        if words in ("and", "or"):
            if self.tokens[-1:] == [Token("op", ",")]:
                self.tokens.pop()
            return self._add("op", words)
        if not words and content.strip(" ,.;:'?~\n\t"):
            raise ParseError(f"{content[:20]!r} as text")
        if not words and "," in content:
            return self.tokens[-1:] == [Token("op", ",")] or self._add("op", ",")
        if content.strip() in _FUNCTIONS:
            return self._add("func", _FUNCTIONS[content.strip()])
        if len(words) == 1:
            return self._add_letter(next(char for char in content if char.isalpha()))
        words = " ".join(word for word in words.split() if word not in ("a", "an", "the"))
        return not words or self._add("text", words)

    def _command(self) -> bool:
        match = self._match(_COMMAND)
        if match is None:
            return False
        name = match[1]
        if name == "\\" and self.environments > 0:
            return self._add("op", "newline")
        if name in _COMMAND_OPS:
            return self._add("op", _COMMAND_OPS[name])
        if name in _FUNCTIONS:
            return self._add("func", _FUNCTIONS[name])
        if name in GREEK_COMMANDS:
            return self._symbol(name)
        if name in _CONSTANTS and len(name) > 1:
            return self._add("const", _CONSTANTS[name])
        raise ParseError(f"unknown command {match.group()[:20]!r}")

    def _letters(self) -> bool:
        match = self._match(_LETTERS)
        if match is None:
            return False
        word = match.group()
        if word in _FUNCTIONS:
            return self._add("func", _FUNCTIONS[word])
        if len(word) > 1 and word in _CONSTANTS:
            return self._add("const", _CONSTANTS[word])
        if word in _PLAIN_UNITS and self.tokens and self.tokens[-1].kind == "num":
            return self._add("text", word)
        capitals = word.isupper() and word != self.text.strip()  # NO/BO is a ratio of lengths
        if len(word) > 3 or (word.casefold() in _SHORT_WORDS and not capitals):
            return self._words(word)
        # Short runs are products; only the last letter can carry the subscript.
        for letter in word[:-1]:
            self._add_letter(letter)
        return self._symbol(word[-1]) if self._subscript_follows() else self._add_letter(word[-1])

    def _subscript_follows(self) -> bool:
        return _SUBSCRIPT.match(self.text, self.at) is not None

    def _add_letter(self, letter: str) -> bool:
        return self._add("const", letter) if letter in _CONSTANTS else self._add("sym", letter)

    def _symbol(self, name: str) -> bool:
        subscript = self._match(_SUBSCRIPT)
        if subscript:
            name += "_" + (subscript[1] or subscript[2]).replace(" ", "")
        return self._add("sym", name)

    def _sign(self) -> bool:
        char = self.text[self.at]
        pair = _PAIRED_SIGNS.get(self.text[self.at : self.at + 2])
        if pair:
            self.at += 2
            return self._add("op", pair)
        if char not in "+-*/^!%|()[]{}=,_:;<>" and not (char == "&" and self.environments > 0):
            return False
        self.at += 1
        if self.text.startswith("**", self.at - 1):
            self.at += 1
            char = "^"
        if char == "," and self.tokens[-1:] == [Token("op", ",")]:
            raise ParseError("two separators in a row")
        return self._add("op", "," if char == ";" else char)


def number(literal: str) -> Num:
    """The exact value of a number token such as ``12``, ``3.50``, ``1.5e-7`` or ``0.1(6)``.

    Raises:
        ParseError: more than ``MAX_LITERAL_DIGITS`` digits, or a power of ten beyond ``MAX_DIGITS``.
    """
    if len(literal) > MAX_LITERAL_DIGITS:
        raise ParseError(f"a number of more than {MAX_LITERAL_DIGITS} digits")
    mantissa, _, power = literal.lower().partition("e") if "overline" not in literal else (literal, "", "")
    whole, _, places = mantissa.replace(r"\overline{", "(").replace("}", ")").partition(".")
    places, repeats, cycle = places.partition("(")
    shift = int(power or 0)
    if abs(shift) > MAX_DIGITS:
        raise ParseError(f"a power of ten beyond {MAX_DIGITS}")
    value = Fraction(int((whole + places) or 0), 10 ** len(places))
    if repeats:
        cycle = cycle.rstrip(")")
        value += Fraction(int(cycle), 10 ** len(places) * (10 ** len(cycle) - 1))
    scaled = value * Fraction(10) ** shift
    exact = not places or bool(repeats)
    return Num(scaled, None if exact else len(places) - shift)
