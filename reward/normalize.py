"""Unicode to the small ASCII LaTeX alphabet that the tokenizer knows."""

import re
import unicodedata

from deltarl.reward.limits import MAX_ANSWER_CHARS, MAX_NORMALIZED_CHARS, LimitError, ParseError
from deltarl.reward.spellings import respelled

_SMALL_GREEK = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu",
    "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
]  # fmt: skip
_CAPITAL_GREEK = ["Gamma", "Delta", "Theta", "Lambda", "Xi", "Sigma", "Phi", "Psi", "Omega"]
GREEK_COMMANDS = frozenset([*_SMALL_GREEK, *_CAPITAL_GREEK, "varepsilon", "vartheta", "varphi", "ell"])

_SUPERSCRIPT = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]+")
_SUBSCRIPT = re.compile("[₀-₉]+")
_ROOT_OF_NUMBER = re.compile(r"(?<=[√∛∜])[0-9]+(?:\.[0-9]+)?")
_VULGAR_FRACTION = re.compile("[¼½¾⅐-⅞]")
_CIRCLED = re.compile("[①-⑳]{2,}")
_DOUBLED_COMMAND = re.compile(r"\\{2,}(?=[A-Za-z])")
_PRICE = re.compile(r"\s*\$\s*[0-9]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# What is left of \frac, \text and others where somebody took the backslash for the beginning of an escape.
_UNESCAPED = re.compile(
    r"\\?(?:\x0c(?=rac)|\x08(?=inom|egin|eta|oxed|ar)|\t(?=frac|imes|heta)|\r(?=ight|ho|angle|floor|ceil)"
    r"|\x07(?=lpha|pprox|ngle)|\x0b(?=ec|ert))"
)
_ESCAPES = {"\x0c": r"\f", "\x08": r"\b", "\t": r"\t", "\r": r"\r", "\x07": r"\a", "\x0b": r"\v"}

_SIGNS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ",
    "∕": "/", "⁄": "/",
    "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ",
    "≤": r"\leq ", "⩽": r"\leq ", "≥": r"\geq ", "⩾": r"\geq ", "≠": r"\neq ", "≈": r"\approx ", "∖": r"\setminus ",
    "°": r"\degree ", "∅": r"\emptyset ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ",
    "€": r"\euro ", "£": r"\pounds ", "¥": r"\yen ", "₹": r"\rupee ", "∠": r"\angle ", "△": r"\triangle ",
    "⟨": r"\langle ", "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ", "′": "'", "’": "'", "≡": r"\equiv ",
    "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ", "¢": r"\text{ cent}", "“": '"', "”": '"', "∧": r"\land ", "∨": r"\lor ",
}  # fmt: skip


def _greek(name: str) -> str:
    case = "CAPITAL" if name[0].isupper() else "SMALL"
    # Unicode spells it "lamda".
    return unicodedata.lookup(f"GREEK {case} LETTER {name.upper().replace('LAMBDA', 'LAMDA')}")


_TABLE = str.maketrans(_SIGNS | {_greek(name): f"\\{name} " for name in [*_SMALL_GREEK, *_CAPITAL_GREEK]})


def normalize(text: str) -> str:
    """``text`` with compatibility characters folded (NFKC), typographic signs as LaTeX, outer punctuation removed.

    Idempotent. Case and letters are never changed.

    Raises:
        ParseError: too long, or it holds control, format (zero-width, right-to-left) or unassigned characters.
    """
    if len(text) > MAX_ANSWER_CHARS:
        raise LimitError(f"longer than {MAX_ANSWER_CHARS} characters")
    if not text.replace("\n", "").isprintable():  # which is far quicker than a pattern
        text = _UNESCAPED.sub(lambda match: _ESCAPES[match.group()[-1]], text)
        hidden = _CONTROL.search(text)
        if hidden:
            raise _invisible(hidden.group())
    if not text.isascii():
        text = _to_ascii(text)
    if "\\\\" in text and r"\begin" not in text:  # where a double backslash ends a row
        text = _DOUBLED_COMMAND.sub(r"\\", text)
    if _PRICE.match(text) and text.count("$") == 1:
        text = "\\" + text.lstrip()
    text = respelled(text.replace(r"\"", '"').strip(' "\n\t\r$'))
    return text.rstrip(' ".,;\n$\\')


def _invisible(char: str) -> ParseError:
    return ParseError(f"contains the invisible or unassigned character U+{ord(char):04X}")


def _to_ascii(text: str) -> str:
    for char in text:
        # All of category C: control, format, surrogate, private use, unassigned.
        if char not in "\n\t\r" and unicodedata.category(char).startswith("C"):
            raise _invisible(char)
    # Before NFKC, which would turn x² into x2 and 1½ into 11/2.
    text = _SUPERSCRIPT.sub(lambda run: "^{" + unicodedata.normalize("NFKC", run.group()) + "}", text)
    text = _SUBSCRIPT.sub(lambda run: "_{" + unicodedata.normalize("NFKC", run.group()) + "}", text)
    # The sign stands over the whole number, the command before one digit of it.
    text = _ROOT_OF_NUMBER.sub(lambda number: "{" + number.group() + "}", text)
    text = _VULGAR_FRACTION.sub(_fraction_command, text)
    text = _CIRCLED.sub(lambda run: ",".join(run.group()), text)
    text = unicodedata.normalize("NFKC", text.translate(_TABLE)).translate(_TABLE)
    if len(text) > MAX_NORMALIZED_CHARS:
        raise LimitError(f"longer than {MAX_NORMALIZED_CHARS} characters after unicode normalisation")
    return text


def _fraction_command(char: re.Match[str]) -> str:
    numerator, _, denominator = unicodedata.normalize("NFKC", char.group()).partition("⁄")
    return rf"\frac{{{numerator}}}{{{denominator}}}"
