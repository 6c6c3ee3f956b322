"""The closed vocabulary of answers: every command, word and sign that the tokenizer knows, and what it stands for."""

from deltarl.reward.normalize import GREEK_COMMANDS
from deltarl.reward.tree import FUNCTION_NAMES

_REWRITTEN = frozenset({"log", "lg", "exp", "sqrt"})
"""Functions the parser expresses by others."""

FUNCTIONS = {name: name for name in (FUNCTION_NAMES | _REWRITTEN) - {"factorial", "binom"}}
FUNCTIONS |= {name: name for name in ("max", "min", "gcd", "lcm")}
FUNCTIONS |= {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "ceiling": "ceil"}
FUNCTIONS |= {prefix + name: "ar" + name for prefix in ("a", "arc") for name in ("sinh", "cosh", "tanh")}

CONSTANTS = {
    "pi": "pi", "infty": "infinity", "infinity": "infinity", "inf": "infinity", "e": "e", "i": "i",
    "exponentialE": "e", "imaginaryI": "i", "iu": "i",
}  # fmt: skip

COMMAND_OPS = {
    "cdot": "*", "times": "*", "bullet": "*", "div": "/", "frac": "frac", "dfrac": "frac", "tfrac": "frac",
    "cfrac": "frac", "nicefrac": "frac", "sfrac": "frac",
    "binom": "binom", "dbinom": "binom", "tbinom": "binom", "over": "over", "choose": "choose",
    "cup": "cup", "bigcup": "cup", "in": "in", "pm": "pm", "mp": "mp", "lbrace": r"\{", "rbrace": r"\}",
    "{": r"\{", "}": r"\}", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "lgroup": "(", "rgroup": ")",
    "lfloor": "lfloor", "rfloor": "rfloor", "lceil": "lceil", "rceil": "rceil", "llcorner": "lfloor",
    "lrcorner": "rfloor", "ulcorner": "lceil", "urcorner": "rceil", "emptyset": "emptyset", "varnothing": "emptyset",
    "oslash": "emptyset", "leq": "<=", "le": "<=", "leqslant": "<=", "geq": ">=", "ge": ">=", "geqslant": ">=",
    "lt": "<", "gt": ">", "neq": "ne", "ne": "ne", "approx": "approx", "simeq": "approx", "equiv": "=",
    "setminus": "setminus", "backslash": "setminus", "land": "and", "wedge": "and", "lor": "or", "vee": "or",
    "%": "%", "lbrack": "[", "rbrack": "]", "colon": ":", "langle": "langle", "rangle": "rangle", "pmod": "pmod",
    "bmod": "mod", "mod": "mod", "sum": "sum", "prod": "prod",
}  # fmt: skip

COMMAND_TOKENS = {
    **{name: ("op", op) for name, op in COMMAND_OPS.items()},
    **{name: ("func", function) for name, function in FUNCTIONS.items()},
    **{name: ("const", constant) for name, constant in CONSTANTS.items() if len(name) > 1},
    **{name: ("currency", unit) for name, unit in (
        ("$", "dollar"), ("pounds", "pound sterling"), ("euro", "euro"), ("yen", "yen"), ("rupee", "rupee"),
    )},
}  # fmt: skip
"""The one token that a command is."""

SYMBOL_COMMANDS = GREEK_COMMANDS

SKIPPED_COMMANDS = frozenset({
    "left", "right", "mleft", "mright", "middle", "displaystyle", "textstyle", "limits", "quad", "qquad",
    "nobreakspace", ",", "!", ";", ":", " ", "\n", "(", ")", "[", "]", "mathrm", "mathbf", "mathit", "mathsf",
    "boldsymbol", "bm", "operatorname", "rm", "bf", "it", "mathop", "underline", "ensuremath",
    "scriptstyle", "tiny", "scriptsize", "footnotesize", "small", "normalsize", "large", "Large", "LARGE", "huge",
    "Huge", "therefore", "checkmark", "blacksquare", "qed",
    *(prefix + size + side for prefix in ("big", "Big") for size in ("", "g") for side in ("", "l", "r", "m")),
})  # fmt: skip
"""Spacing, sizes, fonts and decorations: they do not change what is meant."""

PLAIN_FONTS = "mathbf|mathrm|mathit|mathsf|mathcal|boldsymbol|bm|rm|bf|vec|overrightarrow"
"""A letter in one of these, or under an arrow, is the letter."""

ACCENTS = "bar|hat|tilde|dot|overline|widehat|widetilde"
"""A letter under one of these is another variable."""
SAME_ACCENTS = {"overline": "bar", "widehat": "hat", "widetilde": "tilde"}

SHORT_WORDS = frozenset(
    {"yes", "no", "dne", "or", "and", "odd", "for", "all", "any", "pct", "the", "is", "are", "our", "to"}
)

DOMAINS = {
    "R": "real numbers",
    "Z": "integers",
    "N": "natural numbers",
    "Q": "rational numbers",
    "C": "complex numbers",
}
SIGNED_REALS = {"+": "positive real numbers", ">0": "positive real numbers", "-": "negative real numbers"}

TEMPERATURES = {"C": "celsius", "F": "fahrenheit", "K": "kelvin"}

PAIRED_SIGNS = {"<=": "<=", ">=": ">=", "!=": "ne", "=<": "<=", "=>": ">=", "**": "^"}
OPENING, CLOSING = frozenset(["(", "[", r"\{", "langle"]), frozenset([")", "]", r"\}", "rangle"])
