"""Commands: those that are one token, those to pass over, and those whose argument is part of what they say."""

import re
from collections.abc import Callable

from deltarl.reward.alphabet import (
    ACCENTS,
    CLOSING,
    COMMAND_TOKENS,
    CONSTANTS,
    DOMAINS,
    FUNCTIONS,
    PLAIN_FONTS,
    SAME_ACCENTS,
    SIGNED_REALS,
    SKIPPED_COMMANDS,
    SYMBOL_COMMANDS,
    TEMPERATURES,
)
from deltarl.reward.limits import ParseError
from deltarl.reward.operators import DERIVATIVE, DERIVATIVE_BY
from deltarl.reward.scanner import FEWEST_LETTERS, Scanner, Token
from deltarl.reward.units import SYMBOLS

_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|sc|normal)?|mbox)\s*\{((?:[^{}\\]|\\[$%,! ])*)\}")
_IN_BRACKETS = re.compile(r"\s*\(\s*([A-Za-z][A-Za-z\s.\-]*)\)\s*")
_PLAIN_TEXT = re.compile(r"[A-Za-z\s'.,!?;:\-]*")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_DEGREE = re.compile(
    r"(?:\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![A-Za-z]))|\\degree(?![A-Za-z]))"
    r"(?:[\s~]*(?:\\(?:text|mathrm|rm)\s*\{\s*([CFK])\s*\}|([CFK])(?![A-Za-z(])))?"
)
_DOMAIN = re.compile(
    r"\\(?:mathbb|mathbf|Bbb)\s*\{?\s*([RZNQC])(?![A-Za-z])\s*\}?((?:_\{?[0-9+>* ]+\}?|\^\{?[+*-]\}?)*)"
)
_FACTOR = rf"(?:{'|'.join(sorted((*SYMBOLS, 'ml', 'K'), key=len, reverse=True))})(?:\^(?:-?[1-9]|\{{-?[1-9]\}}))?"
_TIMES = r"(?:\\cdot|\\[,;: ]|\s|~)+"
_UNIT = re.compile(
    rf"\\(?:mathrm|rm|operatorname|text|mbox)\s*\{{\s*~?\s*({_FACTOR}(?:{_TIMES}{_FACTOR}){{0,2}}(?:\s*/\s*{_FACTOR})?)\s*\}}"
    r"(?!\s*[(])"
)
_NAMED_UNIT = r"\s*\{\s*\\(?:mathrm|rm|text|mbox)\s*\{\s*([A-Za-z]{1,12})\s*\}(?:\^\{?([2-9])\}?)?\s*\}"
_UNIT_FRACTION = re.compile(rf"\\[dtc]?frac{_NAMED_UNIT}{_NAMED_UNIT}")
_NAMED = re.compile(r"\\(?:operatorname\*?|mathrm|rm|text|mathop)\s*\{[\s~]*([A-Za-z]{2,})\s*\}")
_STYLED = re.compile(rf"\\(?:({ACCENTS})|{PLAIN_FONTS})\s*(?:\{{\s*(\\?[A-Za-z]+)\s*\}}|([A-Za-z]|\\[A-Za-z]+))")
_WRAPPER = re.compile(r"\s*\\(math|text|bold|bm)(?:bf|it|rm|sf|normal|symbol)?\s*\{(.*)\}\s*", re.DOTALL)
_COLOR = re.compile(r"\\(?:textcolor|color|mathcolor)\s*(?:\[[A-Za-z]*\])?\s*\{[^{}]*\}")
_FIGURE = re.compile(r"\\(measuredangle|angle|triangle)\s*\{?\s*([A-Z]{1,4}(?:_[0-9])?'?)(?![A-Za-z])\s*\}?")
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{\s*(?:[pbBvV]?matrix|smallmatrix|array|cases)\s*\}(?:\s*\{[lcr| ]*\})?")
_RUN_ON = re.compile(r"(?:qquad|quad|cdot|times|[lr]?vert|pi|pm|leq|geq|neq)(?=[A-Za-z])")
"""Commands that a letter is often stuck to."""
_NO_DELIMITER = re.compile(r"\.(?![0-9])")
_UNIT_VECTORS = frozenset("ijk")
_UNIT_VECTOR = re.compile(r"\\(?:mathbf|boldsymbol|bm|vec|bf|hat|widehat)\s*\{?\s*([ijk])(?![A-Za-z])")
_ENDS_OF_OPERAND = CLOSING | {"}", "!"}
COMMANDS = {name: Token(*pair) for name, pair in COMMAND_TOKENS.items()}


class CommandScanner(Scanner):
    """Reads what begins with a backslash, and the degree sign behind a ``^``."""

    def backslash(self) -> bool:
        """A command: one that stands for one token, one to pass over, or one whose argument is part of what it says."""
        match = _COMMAND.match(self.text, self.at)
        if match is None:
            return False
        name = match[1]
        if name == "\\" and self.environments > 0:
            self.at = match.end()
            return self.add("op", "newline")
        token = COMMANDS.get(name)
        if token is not None:
            if token.value == "frac" and (self.derivative() or (self.last().kind == "num" and self.unit_fraction())):
                return True
            self.at = match.end()
            return self.append(token)
        if name in SYMBOL_COMMANDS:
            self.at = match.end()
            return self.symbol(name)
        for step in _COMMAND_STEPS.get(name[:4], ()):
            if step(self):
                return True
        if name in SKIPPED_COMMANDS:
            self.at = match.end()
            if name in ("left", "right") and _NO_DELIMITER.match(self.text, self.at):
                self.at += 1
            return True
        run_on = _RUN_ON.match(name)
        if run_on:
            cut = match.start() + 1 + run_on.end()
            self.text = f"{self.text[:cut]} {self.text[cut:]}"
            return True
        raise ParseError(f"unknown command {match.group()[:20]!r}")

    def environment(self) -> bool:
        match = self.match(_ENVIRONMENT)
        if match is None:
            return False
        begins = match[1] == "begin"
        self.environments += 1 if begins else -1
        bars = "{vmatrix}" in match.group()
        if bars and begins:
            self.add("op", "|")
        self.add("op", match[1])
        if begins and "{cases}" in match.group():
            self.add("op", "cases")
        return not bars or begins or self.add("op", "|")

    def domain(self) -> bool:
        match = self.match(_DOMAIN)
        if match is None:
            return False
        name, restriction = DOMAINS[match[1]], match[2].strip("_^{} ").replace(" ", "")
        if restriction:
            name = SIGNED_REALS.get(restriction, name + restriction) if match[1] == "R" else name + restriction
        return self.add("text", name)

    def unit_command(self) -> bool:
        r"""``\mathrm{m}`` is a metre behind a number, and a variable elsewhere."""
        last = self.last()
        below = last == ("op", "/") and len(self.tokens) > 1 and self.tokens[-2].kind == "text"
        if last.kind not in ("num", "const", "sym") and last.value not in _ENDS_OF_OPERAND and not below:
            return False
        match = self.match(_UNIT)
        if match is None:
            return False
        factors = re.sub(_TIMES, " ", match[1]).replace("{", "").replace("}", "")
        return self.add("text", re.sub(r"\s*/\s*", "/", factors))

    def derivative(self) -> bool:
        r"""``\frac{dy}{dx}``: a name; ``\frac{d}{dx}``: one that what follows is multiplied by, as far as we know."""
        match = self.match(DERIVATIVE)
        if match is None:
            return False
        power = (match["power"] or "").strip("^{} ")
        return self.add("sym", f"d{power}{match['of']}{DERIVATIVE_BY}{match['by']}{power}")

    def unit_fraction(self) -> bool:
        r"""``\frac{\text{km}}{\text{h}}``."""
        match = self.match(_UNIT_FRACTION)
        if match is None:
            return False
        above, below = (name + (f"^{power}" if power else "") for name, power in (match.group(1, 2), match.group(3, 4)))
        return self.add("text", f"{above}/{below}")

    def named(self) -> bool:
        r"""``\operatorname{gcd}``, or a word as in ``5\mathrm{~hours}``."""
        match = _NAMED.match(self.text, self.at)
        if match is None:
            return False
        name = match[1]
        if name not in FUNCTIONS and (len(name) < FEWEST_LETTERS or not name[1:].islower()):
            return False
        self.at = match.end()
        return self.add("func", FUNCTIONS[name]) if name in FUNCTIONS else self.words(name)

    def styled(self) -> bool:
        r"""``\mathbf{u}``, ``\vec{v}`` and ``\bar x``: one variable. ``\overline{AB}`` is the length of a segment."""
        match = _STYLED.match(self.text, self.at)
        if match is None:
            return False
        accent, name = match[1], match[2] or match[3]
        greek = name[0] == "\\"
        if greek and name[1:] not in SYMBOL_COMMANDS:
            return False
        if not greek and len(name) > 1:
            if accent and not name.isupper():
                return False
            if not accent and not match.group().startswith((r"\vec", r"\over")):
                return False  # a word in another font
            self.at = match.end()
            for letter in name:
                self.add("sym", letter)
            return True
        self.at = match.end()
        name = name.lstrip("\\")
        if name in _UNIT_VECTORS and not accent and len(set(_UNIT_VECTOR.findall(self.text))) > 1:
            accent = "hat"
        if not accent and name in CONSTANTS and not self.subscript_follows():
            return self.add_letter(name)
        return self.symbol(f"{SAME_ACCENTS.get(accent, accent)} {name}" if accent else name)

    def figure(self) -> bool:
        r"""``\angle ABC``, ``m\angle ABC``: a name."""
        match = self.match(_FIGURE)
        if match is None:
            return False
        if self.last() == ("sym", "m") and "angle" in match[1]:
            self.tokens.pop()
        return self.add("sym", f"{'triangle' if match[1] == 'triangle' else 'angle'} {match[2]}")

    def wrapper(self) -> bool:
        r"""``\mathbf{x = 5}`` and ``\textbf{$\frac12$}``: a font around the whole answer is passed over."""
        match = _WRAPPER.fullmatch(self.text)
        if match is None or self.at > match.start(1):
            return False
        content = match[2].strip()
        formula = len(content) > 1 and content[0] == content[-1] == "$" and content.count("$") == 2
        if not _is_balanced(content) or not (formula or (match[1] != "text" and "=" in content)):
            return False
        self.text, self.at = content, 0
        return True

    def color(self) -> bool:
        return self.match(_COLOR) is not None

    def text_command(self) -> bool:
        match = self.match(_TEXT)
        if match is None:
            return False
        content = match[1]
        noted = _IN_BRACKETS.fullmatch(content)
        if noted and self.last().kind == "num":
            content = noted[1]  # 5 (units)
        if not _PLAIN_TEXT.fullmatch(content):
            # Mathematics inside \text{}: read it as if the wrapper were not there.
            self.text = self.text[: match.start()] + " " + content + " " + self.text[match.end() :]
            self.at = match.start()
            return True
        return self.words(content)

    def degree(self) -> bool:
        match = self.match(_DEGREE)
        if match is None:
            return False
        scale = match[1] or match[2]
        return self.add("text", TEMPERATURES[scale]) if scale else self.add("op", "degree")


def _is_balanced(content: str) -> bool:
    """Whether every brace that closes in ``content`` was opened in it."""
    depth = 0
    for char in content:
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return False
    return depth == 0


_Step = Callable[[CommandScanner], bool]
_FONT_STEPS: tuple[_Step, ...] = (
    CommandScanner.wrapper,
    CommandScanner.unit_command,
    CommandScanner.named,
    CommandScanner.styled,
)
_COMMAND_STEPS: dict[str, tuple[_Step, ...]] = {
    "begi": (CommandScanner.environment,),
    "end": (CommandScanner.environment,),
    "text": (
        CommandScanner.wrapper,
        CommandScanner.unit_command,
        CommandScanner.named,
        CommandScanner.text_command,
        CommandScanner.color,
    ),
    "mbox": (CommandScanner.unit_command, CommandScanner.text_command),
    "math": (CommandScanner.domain, *_FONT_STEPS, CommandScanner.color),
    "Bbb": (CommandScanner.domain,),
    "oper": _FONT_STEPS,
    **dict.fromkeys(("rm", "bf", "bm", "bold", "vec", "over", "bar", "hat", "tild", "dot", "wide"), _FONT_STEPS),
    "colo": (CommandScanner.color,),
    **dict.fromkeys(("angl", "meas", "tria"), (CommandScanner.figure,)),
    "degr": (CommandScanner.degree,),
}
"""Commands with an argument, by their first four letters."""
