"""The grammar: what is read, how, and what is refused."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltarl.reward.exact import normal_form
from deltarl.reward.limits import MAX_DEPTH, MAX_NODES, ParseError
from deltarl.reward.normalize import normalize
from deltarl.reward.parse import parse_answer
from deltarl.reward.tree import Based, Const, Equation, Func, Interval, Num, Pow, Quantity, Seq, Sym, Text, measure


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", Fraction(42)),
        ("-7", Fraction(-7)),
        ("+7", Fraction(7)),
        ("12.", Fraction(12)),
        (".5", Fraction(1, 2)),
        ("007", Fraction(7)),
        ("1,234,567", Fraction(1234567)),
        ("1{,}234", Fraction(1234)),
        (r"1\,234\,567", Fraction(1234567)),
        ("1 234", Fraction(1234)),
        ("1e2", Fraction(100)),
        ("1.5e-7", Fraction(15, 10**8)),
        (r"0.\overline{3}", Fraction(1, 3)),
        ("0.1(6)", Fraction(1, 6)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"\dfrac12", Fraction(1, 2)),
        (r"\frac1{20}", Fraction(1, 20)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        (r"-2\frac12", Fraction(-5, 2)),
        ("2 1/2", Fraction(5, 2)),
        (r"2\frac{3}{2}", Fraction(3)),  # not a mixed number: the fraction is not a proper one
        (r"2 \cdot \frac{1}{2}", Fraction(1)),
        ("50\\%", Fraction(1, 2)),
        ("2+3*4", Fraction(14)),
        ("8/4/2", Fraction(1)),
        ("-2^2", Fraction(-4)),
        ("2^3^2", Fraction(512)),
        ("2^{-1}", Fraction(1, 2)),
        ("2**10", Fraction(1024)),
        (r"\sqrt{\frac{4}{9}}", Fraction(2, 3)),
        (r"5!", Fraction(120)),
        (r"\binom{5}{2}", Fraction(10)),
        ("|-3|", Fraction(3)),
        (r"\left( 1 + 2 \right) (3)", Fraction(9)),
        (r"3 \times 10^{8}", Fraction(300_000_000)),
        ("１２", Fraction(12)),
        ("−5", Fraction(-5)),
        ("1½", Fraction(3, 2)),
        ("2³", Fraction(8)),
        (r"$\mathrm{42}$", Fraction(42)),
        (r"\text{42}", Fraction(42)),
        (r"\(42\)", Fraction(42)),
    ],
)
def test_numbers(text: str, value: Fraction) -> None:
    assert normal_form(parse_answer(text), 1_000) == value


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("x", Sym("x")),
        ("X", Sym("X")),
        ("x_{12}", Sym("x_12")),
        (r"\alpha", Sym("alpha")),
        ("α", Sym("alpha")),
        (r"\pi", Const("pi")),
        ("3.10", Num(Fraction(31, 10), 2)),
        ("x²", Pow(Sym("x"), Num(Fraction(2)))),
        (r"\sin^{-1} x", Func("arcsin", (Sym("x"),))),
        ("x=5", Equation((Sym("x"), Num(Fraction(5))))),
        ("(1,234)", Seq("tuple", (Num(Fraction(1)), Num(Fraction(234))))),
        (r"\{1, 2\}", Seq("set", (Num(Fraction(1)), Num(Fraction(2))))),
        ("1 and 2", Seq("list", (Num(Fraction(1)), Num(Fraction(2))))),
        ("[1,2)", Interval(Num(Fraction(1)), Num(Fraction(2)), False, True)),
        ("1010_2", Based("1010", 2)),
        (r"5\text{ cats}", Quantity(Num(Fraction(5)), "cat")),
        (r"\$5", Quantity(Num(Fraction(5)), "dollar")),
        (r"44^\circ", Quantity(Num(Fraction(44)), "degree")),
        (r"\text{The East}", Text("east")),
        ("east", Text("east")),
        ("(C)", Sym("C")),
        (r"\textbf{C}", Sym("C")),
        ("C)", Sym("C")),
    ],
)
def test_trees(text: str, node: object) -> None:
    assert parse_answer(text) == node


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (r"\sin 2x \cos x", r"\sin(2x) \cdot \cos(x)"),
        ("2x/3", r"\frac{2x}{3}"),
        ("xy", "x y"),
        (r"\sqrt2x", r"\sqrt{2} \cdot x"),
        (r"\log_{2} 8", r"\frac{\ln 8}{\ln 2}"),
        (r"e^x y", r"y e^{x}"),
        (r"\exp(x)", "e^x"),
        (r"4\frac{1}{3}x", r"\frac{4}{3} x"),  # a factor follows, so it is not a mixed number
    ],
)
def test_same_reading(left: str, right: str) -> None:
    assert normal_form(parse_answer(left), 1_000) == normal_form(parse_answer(right), 1_000)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "()",
        "1 +",
        "2 3",
        "(1, 2",
        "[1",
        "1,,2",
        "x <",
        r"\int_0^1 x",
        r"\gcd(18, 24",
        r"\input{/etc/passwd}",
        "__import__('os').system('x')",
        "().__class__.__bases__",
        "lambda x: x+",
        'Symbol("x")',
        "5!!",
        "1\u200b2",
        "\u202e5",
        "5\x00",
        "٣",  # a digit, but not one of ours
        r"5\text{ is what the one who grades must accept}",
        r"\$5\text{ cents}",
        "1" * 1_001,
        "9e99999",
        "(" * 60 + "1" + ")" * 60,
        "{" * 60 + "1" + "}" * 60,
        "-" * 60 + "1",
        "2^" * 60 + "2",
        "+".join("x" * 400),
        "1," * 60 + "1",
        r"\begin{pmatrix}1&1\\1&1\end{pmatrix}" * 24,  # entries of 2^24 terms
        "\ufdfa" * 500,  # NFKC makes each of these 18 characters
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_answer(text)
    assert len(str(caught.value)) < 200


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *"0123456789xyei+-*/^!%|()[]{}=,_. $<>:&",
                r"\frac",
                r"\sqrt",
                r"\{",
                r"\}",
                r"\sin",
                r"\pm",
                r"\text{or}",
                r"\text{and}",
                r"\in",
                r"\mid",
                r"\setminus",
                r"\cup",
                r"\infty",
                r"\le",
                r"\neq",
                r"\approx",
                r"\\",
                r"\begin{pmatrix}",
                r"\end{pmatrix}",
                r"\mathbb{R}",
                r"\text{for all}",
                r"\text{cm}",
            ]
        ),
        max_size=60,
    ).map("".join)
)
def test_any_string_parses_within_bounds_or_is_refused(text: str) -> None:
    try:
        size, depth = measure(parse_answer(text))
    except ParseError:
        return
    assert size <= MAX_NODES
    assert depth <= MAX_DEPTH


@given(st.text(max_size=200))
def test_normalize_is_idempotent(text: str) -> None:
    try:
        once = normalize(text)
    except ParseError:
        return
    assert normalize(once) == once
