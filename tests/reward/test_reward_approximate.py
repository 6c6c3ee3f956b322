"""Floats with their errors: they may leave a question open, and must never answer it wrongly."""

from fractions import Fraction

import pytest

from deltarl.reward.approximate import approximate, differ, within
from deltarl.reward.parse import parse_answer

EQUAL = [
    (r"\sin^2 x + \cos^2 x", "1"),
    (r"\sqrt{10^{20} + 1} - 10^{10}", r"\frac{1}{\sqrt{10^{20} + 1} + 10^{10}}"),  # all digits cancel
    (r"(1 + 10^{-12} x)^{1000}", r"e^{1000 \ln(1 + 10^{-12} x)}"),
    (r"\ln(x^{200}) - 200 \ln x", "0"),
    (r"\arccos(\cos x)", "x"),
    (r"\sqrt{2} + 10^{-700}", r"\sqrt{2} + 10^{-700}"),
    (r"\sqrt{(x - y)^2}", "|x - y|"),
    (r"\frac{x^2 - 1}{x - 1}", "x + 1"),
    (r"\tan(\pi / 2 + 10^{-9})", r"-\cot(10^{-9})"),
]


@pytest.mark.parametrize(("left", "right"), EQUAL)
def test_equal_ones_are_never_told_apart(left: str, right: str) -> None:
    assert not differ(parse_answer(left), parse_answer(right))


@pytest.mark.parametrize(
    ("left", "right"),
    [("x + 10^{-6}", "x"), (r"\sin x", r"\sin y"), (r"\sqrt2", "1.4142135"), ("x y", "x + y"), (r"\sqrt{x^2}", "-x"),
     (r"\ln x", r"\log_{2} x"), ("e^x", "e^{-x}"), (r"\sqrt{x - 5}", r"\sqrt{x - 6}")],
)  # fmt: skip
def test_different_ones_are(left: str, right: str) -> None:
    assert differ(parse_answer(left), parse_answer(right))


@pytest.mark.parametrize(
    ("left", "right", "told"),
    [
        ("i", "7", True),
        ("3 - 2i", "3 + 2i", True),
        ("3 - 2i", r"\sqrt[3]{5}", True),
        (r"\frac{1 + i\sqrt3}{2}", r"\frac{1 - i\sqrt3}{2}", True),
        ("(1 + i)^2", "2i", False),
        (r"\sqrt{-3 + 0i}", r"i\sqrt3", False),  # on the cut: left open
        (r"e^{i\pi}", "-1", False),
    ],
)
def test_complex_ones(left: str, right: str, told: bool) -> None:
    assert differ(parse_answer(left), parse_answer(right)) is told


@pytest.mark.parametrize("text", [r"\lfloor x \rfloor", "n!", r"\ln(-x)", r"\frac{1}{x - x}"])
def test_what_has_no_real_value_stays_open(text: str) -> None:
    assert not differ(parse_answer(text), parse_answer("7"))


def test_within_is_open_at_the_edge() -> None:
    pi = parse_answer(r"\pi")
    assert within(pi, Fraction(314, 100), Fraction(1, 100)) is True
    assert within(pi, Fraction(314, 100), Fraction(1, 1000)) is False
    assert within(parse_answer(r"\sqrt{4}"), Fraction(1), Fraction(1)) is None
    assert within(parse_answer("x"), Fraction(1), Fraction(1)) is None


def test_values_are_ordered_up_to_infinity() -> None:
    values = [approximate(parse_answer(text)) for text in (r"-\infty", "-2", r"\frac13", r"\pi", r"\infty")]
    assert None not in values
    assert values == sorted(value for value in values if value is not None)
    assert approximate(parse_answer("x")) is None
