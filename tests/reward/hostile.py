r"""Hypothesis strategies for hostile golds and completions.

Answers of the verifier's own grammar and of its tokens in any order, what attacks computer algebra, and mutilations.
"""

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from deltarl.reward.alphabet import COMMAND_TOKENS, SKIPPED_COMMANDS

_GOLDS = (
    "42", "-7/3", "3.14", r"\sqrt{2}", r"\frac{\pi}{4}", "x^2 + 2x + 1", r"\sin 2x", "2^{1000}", "9^{9^{9^9}}",
    "(1, 2]", r"[0, 1) \cup (2, \infty)", r"\{1, 2, 3\}", "(1, -2, x)", r"\begin{pmatrix} 1 & 2 \\ 3 & x \end{pmatrix}",
    "2x + 3y = 5", r"x \le 3", r"\{x \mid x > 2\}", r"3 \pm \sqrt{5}", r"5 \text{ cm}", "15\\%", "1011_2",
    r"\text{east}", r"\binom{n}{2}",
)  # fmt: skip
_NUMBERS = (
    *"0123456789", "10", "999", "0.5", ".5", "3.", "1,234", "1e9", "1e-400", "10^{99}", "10^{9999}", "9" * 300,
    r"\pi", "e", "i", r"0.\overline{3}", r"2\frac{1}{2}", r"\infty", "-1", "-3.7", "20!", r"\sqrt{3}", r"10^{-30}",
)  # fmt: skip
_SYMBOLS = (*"xyzntkab", r"\theta", "x_{1}", r"\alpha_{n+1}", "R", "A")
_ODDITIES = (
    r"\emptyset", r"\mathbb{R}", r"\text{none}", r"5\text{ cm}", r"30^\circ", "50\\%", "\\$5", "101_2", "1011_{10^9}",
    "2:3", "6:00\\text{ p.m.}", "²", "½", "∞", "π", "−", "√2", "\uff11\uff12", "\u200b", "\u202e", "\x00", "\ud800",
    "e\u0301" * 20, "\U0001d7d8", "٣", "nan", "inf", "None", "True",
)  # fmt: skip
_ATTACKS = (
    "9^{9^{9^{9}}}", "((20!)!)!", "(10^9)!", "10^{9999}!", r"\binom{10^9}{5\cdot10^8}", r"\binom{1000}{500}^{1000}",
    "1000!^{1000!}", "e^{e^{e^{e^{e^9}}}}", r"\tan(\tan(\tan(10^{999})))", r"\lfloor 10^{9999}\pi \rfloor",
    "(x+y+z+t+w+a+b)^{20}", "(1+x)^{10^9}", r"\sqrt[10^9]{2}", "0^0", "1/0", "0/0", r"\ln 0", r"\infty-\infty",
    r"\sum_{k=1}^{10^9} k", r"\int_0^1 x dx", r"\lim_{x\to0} x", r"\prod_{k=1}^{999} k", "7=1=2", "0=0", "x=x",
    "eye(20000)", "__import__('os').system('touch pwned')", "[x for x in ().__class__.__base__.__subclasses__()]",
    "Integer('42')", "lambda: 0", "42; import os", "{0.__class__}", "%s%n%x", r"\input{/etc/passwd}", r"\def\x{\x\x}\x",
    r"\write18{id}", r"\boxed{42}", "</think>", "<answer>42</answer>", "#### 42", r"\text{" * 60, r"\frac" * 90,
    "{" * 120, "|" * 200, "-" * 300, "x^" * 120 + "2", "1," * 120, r"\sqrt{" * 60, r"\left(" * 90,
    "(" * 300 + ")" * 300, "[" * 51 + "]" * 51, "!" * 200,
)  # fmt: skip
_FUNCTIONS = (
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log", "exp",
)  # fmt: skip
_RELATIONS = (" = ", " < ", " > ", r" \le ", r" \ge ", r" \neq ", r" \approx ", r" \in ", r" \equiv ", r" \to ")
_OPERATORS = (" + ", " - ", " ", r" \cdot ", r" \times ", "*", "/", " + ", " - ", " ", r" \pm ")
_NESTINGS = (
    ("(", ")"), ("{", "}"), (r"\frac{1}{", "}"), (r"\sqrt{", "}"), ("2^{", "}"), ("|", "|"), (r"\sin(", ")"), ("-", ""),
    ("", "!"), ("[", "]"), (r"\text{", "}"), (r"\{", r"\}"), (r"\lfloor ", r"\rfloor "), ("1+(", ")"), ("x^{", "}"),
)  # fmt: skip


_TOKENS = (
    *"+-*/^_=<>|!%:,;()[]{}&'.~$", *(f"\\{name} " for name in sorted(COMMAND_TOKENS)),
    *(f"\\{name}" for name in sorted(SKIPPED_COMMANDS)), r"\text{", r"\mathrm{", r"\operatorname{", r"\begin{pmatrix}",
    r"\end{pmatrix}", r"\begin{cases}", r"\\", r"\color{red}", r"\overline{", "sin", "log", "and", "or", "max", "mod",
)  # fmt: skip
_MOST_CHARS = 3_000


def _chosen(*pieces: tuple[str, ...]) -> SearchStrategy[str]:
    return st.sampled_from([piece for part in pieces for piece in part])


def _any_of(*strategies: SearchStrategy[str]) -> SearchStrategy[str]:
    """One of the strategies, each as often as it is named: ``one_of`` would count the branches within each."""
    return st.sampled_from(strategies).flatmap(lambda strategy: strategy)


_VALUES = _any_of(*[_chosen(_NUMBERS)] * 3, *[_chosen(_SYMBOLS)] * 2)
_ATOMS = _any_of(*[_VALUES] * 15, _chosen(_ODDITIES, _ATTACKS))


def _written(form: str, *parts: SearchStrategy[str]) -> SearchStrategy[str]:
    """``form`` with what is drawn from ``parts`` in place of each @."""
    pieces = form.split("@")
    return st.tuples(*parts).map(lambda values: pieces[0] + "".join(map("".join, zip(values, pieces[1:], strict=True))))


def _several(part: SearchStrategy[str], separator: str, most: int = 4) -> SearchStrategy[str]:
    return st.lists(part, min_size=1, max_size=most).map(separator.join)


def _operations(part: SearchStrategy[str]) -> SearchStrategy[str]:
    """What the grammar makes a scalar of scalars with."""
    powers = _chosen(tuple("23459"))
    return st.one_of(
        _written("@@@", part, _chosen(_OPERATORS), part),
        _written("(@)(@)", _several(part, " + "), _several(part, " - ")),
        _written(r"\frac{@}{@}", part, part),
        _written("(@)^{@}", part, part),
        _written("(@)^@", _several(part, " + "), powers),
        _written(r"\sqrt[@]{@}", _chosen(_NUMBERS), part),
        _written(r"\sqrt{@}", part),
        _written("(@)!", part),
        _written(r"\binom{@}{@}", part, part),
        _written(r"\@(@)", _chosen(_FUNCTIONS), part),
        _written(r"\@^2 @", _chosen(_FUNCTIONS), _ATOMS),
        _written(r"\log_{@}(@)", _ATOMS, part),
        _written(r"\left|@\right|", part),
        _written(r"\lfloor @ \rfloor", part),
    )


scalars = st.recursive(_ATOMS, _operations, max_leaves=12)
_SMALL = st.recursive(_ATOMS, _operations, max_leaves=4)
_UNITS = _chosen(("cm", "km/h", "apples", "is prime", "if x > 0"))
_COLLECTIONS = st.one_of(
    _written("@@@", _SMALL, _chosen(_RELATIONS), _SMALL),
    _written("@ < @ < @", _ATOMS, _chosen(_SYMBOLS), _SMALL),
    _written(r"\{@\}", _several(_SMALL, ", ", 6)),
    _written("(@)", _several(_SMALL, ", ")),
    _several(_ATOMS, ", ", 60),
    _written("[@, @)", _SMALL, _SMALL),
    _written(r"(@, @) \cup [@, \infty)", _ATOMS, _SMALL, _SMALL),
    _written(r"(-\infty, @) \setminus \{@\}", _SMALL, _several(_SMALL, ", ")),
    _written(r"\{x \mid x > @\}", _SMALL),
    _written(r"\begin{pmatrix} @ & @ \\ @ & @ \end{pmatrix}", _SMALL, _SMALL, _ATOMS, _SMALL),
    _written(r"\begin{pmatrix} @ \\ @ \end{pmatrix}", _several(_ATOMS, " & ", 20), _several(_ATOMS, " & ", 20)),
    _written(r"\begin{cases} @ & x > 0 \\ @ & x \le 0 \end{cases}", _SMALL, _SMALL),
    _written(r"x = @ \text{ and } y = @", _SMALL, _SMALL),
    _written("f(@) = @", _chosen(_SYMBOLS), _SMALL),
    _written(r"@ \text{ @}", _SMALL, _UNITS),
    _written(r"@ \pmod{@}", _SMALL, _ATOMS),
)
_SOUP = st.lists(st.one_of(_chosen(_TOKENS), _chosen(_TOKENS), _ATOMS), min_size=1, max_size=40).map("".join)
_POSITIONS = st.integers(0, _MOST_CHARS)
_DEPTHS = st.sampled_from((1, 1, 1, 2, 5, 45, 200))


@st.composite
def _mutilated(draw: st.DrawFn, texts: SearchStrategy[str]) -> str:
    """A text with a piece cut out, repeated, moved, put in or changed, or nested as deeply as nobody would."""
    text = draw(texts)
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 4)))):
        start = draw(_POSITIONS) % (len(text) + 1)
        end = start + draw(st.integers(0, 8))
        before, span, after = text[:start], text[start:end], text[end:]
        match draw(st.integers(0, 8)):
            case 0:
                text = before + after
            case 1:
                text = before + span * draw(st.sampled_from((2, 3, 20, 100))) + after
            case 2:
                text = before + draw(st.one_of(_chosen(_TOKENS), _SMALL)) + after
            case 3:
                text = before + span.swapcase() + after
            case 4:
                text = before + draw(st.characters()) + after
            case 5:
                text = after + span + before
            case 6:
                text = before
            case 7:
                (opening, closing), depth = draw(st.sampled_from(_NESTINGS)), draw(_DEPTHS)
                text = opening * depth + text + closing * depth
            case _:
                text = f"{text}{draw(_chosen(_OPERATORS))}{draw(_SMALL)}"
        text = text[:_MOST_CHARS]
    return text


_WELL_FORMED = _any_of(scalars, _COLLECTIONS)
_ANSWERS = _any_of(*[_WELL_FORMED] * 8, *[_mutilated(_WELL_FORMED)] * 5, _SOUP, _chosen(_ATTACKS, _ODDITIES))
golds = _any_of(*[_chosen(_GOLDS)] * 6, *[st.recursive(_VALUES, _operations, max_leaves=4)] * 3, _ANSWERS)
"""Most of them as data sets have them, the others whatever the grammar yields."""


@st.composite
def completions(draw: st.DrawFn, gold: str) -> str:
    """A response with a hostile answer, which may be close to ``gold``, mostly in one box."""
    answer = draw(_any_of(_mutilated(st.just(gold)), _ANSWERS, _ANSWERS, _ANSWERS))
    box = rf"\boxed{{{answer}}}"
    opening = draw(_chosen((r"\boxed{", r"\text{", "$", "{", r"\(", " ")))
    match draw(st.integers(0, 69)):  # small numbers and the largest come more often than others
        case 30:
            return rf"\boxed{{{answer}"
        case 31:
            return box * draw(st.integers(2, 400))
        case 32:
            return rf"\boxed{{{box}}}"
        case 33:
            return f"<think>{box}"
        case 34:
            return f"{box}</think>{answer}"
        case 35:
            return f"{answer}\n" * draw(st.integers(1, 200)) + box
        case 36:
            return opening * 8_000 + box
        case 37:
            return box + "x" * 100_000
        case 38:
            return f"{answer} {box} {answer}"
    return box
