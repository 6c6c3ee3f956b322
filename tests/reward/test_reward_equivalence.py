"""Minimal pairs of equal and unequal answers."""

import pytest

from deltarl.reward import numeric, symbolic
from deltarl.reward.equivalence import judge
from deltarl.reward.parse import parse_answer
from deltarl.reward.tree import FUNCTION_NAMES, Node

EQUAL = [
    # gold, pred
    ("5", "5.0"),
    ("1/2", "0.5"),
    ("1234567", r"1\,234\,567"),
    (r"\frac{3}{2}n + \frac{1}{2}m", r"\dfrac{3n + m}{2}"),
    ("x + t", "t+x"),
    (r"\frac{-1+\sqrt{5}}{2}", r"\frac{2}{1+\sqrt5}"),
    (r"5 \sqrt[3]{4}", r"5 \cdot 2^{2/3}"),
    (r"\sin 2x", r"2 \sin x \cos x"),
    ("x+1", r"\frac{x^2-1}{x-1}"),
    (r"2 \ln x", r"\ln(x^2)"),  # where both are defined
    (r"2 \arcsin \sqrt{a}", r"\arccos(1 - 2a)"),
    ("n(n-1)", r"\frac{n!}{(n-2)!}"),
    ("-1", r"e^{i\pi}"),
    ("2i", r"\sqrt{-4}"),
    ("-2", r"\sqrt[3]{-8}"),
    ("3", r"\frac{\ln 8}{\ln 2}"),
    ("9^{9^9}", "9^{9^9}"),
    # decimals
    ("0.333333", r"\frac13"),
    ("21.93", r"21 \dfrac{13}{14}"),
    ("3.14", r"\pi"),
    ("2.653", "2.65"),
    ("656.8", "657"),
    ("3.14", r"\frac{201}{64}"),
    (r"6.6261 \times 10^{-34}", r"6.63 \times 10^{-34}"),
    ("0.5", "1/2"),
    ("0.5", r"50\%"),
    # assignments and equations
    ("5", "x=5"),
    ("x=5", "5"),
    ("5", "x = 10/2 = 5"),
    ("f(x) = x-1", "x-1"),
    ("x^2+y^2=1", "2x^2 + 2y^2 = 2"),
    ("y=2x+1", "2x - y + 1 = 0"),
    (r"1 \pm \sqrt2", r"1+\sqrt2, 1-\sqrt2"),
    # collections
    ("1,2", "2,1"),
    ("-2,-1,1,2", r"\{2, 1, -1, -2\}"),
    ("x=1, y=2", "1, 2"),
    ("(1,2),(3,4)", "(3,4),(1,2)"),
    ("0.33, 0.333", r"0.333, \frac13"),  # a greedy matching fails
    (r"(-\infty, 0) \cup (1, \infty)", r"(1, +\infty) \cup (-\infty, 0)"),
    # units and text
    (r"5\text{ cm}", "5"),
    ("44", r"44^\circ"),
    (r"\frac{2\pi}{3}", r"120^\circ"),
    (r"\frac12", r"\sin 30^\circ"),
    (r"\text{even}", "Even"),
    (
        r"\begin{bmatrix}4&1\\4&1\end{bmatrix}",
        r"\begin{pmatrix}1&1\\1&1\end{pmatrix}\begin{pmatrix}3&1\\1&0\end{pmatrix}",
    ),
    ("3", r"x \equiv 3 \pmod{7}"),
    (r"x \equiv 3 \pmod 7", "x ≡ 3 (mod 7)"),
    ("C", r"\text{(C)}"),
]

UNEQUAL = [
    ("5", "6"),
    ("3 t", "3"),
    (r"2 \pi r h", r"2\pi r"),
    ("6 a b", "6"),
    ("2 + 3 t", "5"),
    (r"\frac{a}{b} c", r"\frac{a}{b}"),
    ("2 d", "2 h"),
    (r"\pi R^2-\pi r^2", "0"),
    ("x^2", "X^2"),
    ("x_1", "x_2"),
    ("x", r"\sqrt{x^2}"),
    (r"6.626\times10^{-34}", r"9.1\times10^{-31}"),
    (r"10^{-30}", r"2\cdot10^{-30}"),
    (r"\pi \cdot 10^{-30}", r"2\pi \cdot 10^{-30}"),
    ("1e-7", "2e-7"),
    ("0.0000001", "0.0000002"),
    ("x", "x + 10^{-300}"),
    (r"\sqrt2", r"\sqrt2 + 10^{-700}"),
    ("1010_2", "1010_3"),
    ("1010_2", "1010"),
    ("east", "seat"),
    ("no", "on"),
    ("7", "7=1=2"),
    ("7", "1=2=3=4=5=6=7"),
    ("6", "5=6"),
    ("x=5", "x=6=5"),
    ("x=5", "y=5"),
    ("x=5", "5=5"),
    ("x^2+y^2=1", "x^2+y^2=2"),
    ("x^2+y^2=1", "0=0"),
    ("1/3", "0.333333"),
    (r"\pi", "3.14159"),
    ("5", "4.9999999"),
    ("785.12", "784"),
    ("0.458", "0.46"),  # two digits are too few
    ("0.5", "0.52"),  # a short decimal is exact
    ("7.75", "7.751"),
    ("3.14", "3.1416"),  # longer than gold
    ("12.5", "12.5321"),
    (r"6.63 \times 10^{-34}", r"6.6261 \times 10^{-34}"),
    ("656.8", "656"),
    ("12.5", "13"),
    ("7.75", r"\frac{7751}{1000}"),
    ("7.75", "7.750001"),
    ("6.626e-34", "6.6263e-34"),
    ("50", r"50\%"),
    ("5", "500"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "1,2"),
    ("(1,2)", r"\{1,2\}"),
    ("1,2", "1,2,2"),
    ("1,2", "1"),
    ("1", "1,2"),
    ("1", "1 or 2"),
    ("6", r"5 \pm 1"),
    ("[0,1)", "[0,1]"),
    ("[0,1)", "(0,1)"),
    (r"5\text{ m}", r"5\text{ cm}"),
    (r"\$5", r"5\text{ cents}"),
    (r"40\text{ cats}, 60\text{ dogs}", "40"),
    (r"40\text{ cats}, 60\text{ dogs}", r"40\text{ cats}, 999\text{ dogs}"),
    ("A", "A or C"),
    ("5", "1/0"),
    ("1", "0^0"),
    ("0", r"\infty - \infty"),
    (r"\infty", r"-\infty"),
    (r"\sqrt{2}", "(i^2)!"),
    ("5", "9^{9^{9^9}}"),
    ("5", "10^{9999}!"),
    ("5", "(((20!)!)!)"),
    ("0", "e^{-10^9}"),
    ("2", "2^{10^{9999}}"),
    (
        r"\begin{bmatrix}3&2\\1&1\end{bmatrix}",
        r"\begin{pmatrix}1&1\\1&1\end{pmatrix}\begin{pmatrix}3&1\\1&0\end{pmatrix}",
    ),
    ("3", r"x \equiv 10 \pmod{7}"),
]


def right(pred: Node, gold: Node) -> bool:
    return judge(pred, gold)[0]


@pytest.mark.parametrize(("gold", "pred"), EQUAL)
def test_equal(gold: str, pred: str) -> None:
    assert right(parse_answer(pred), parse_answer(gold))


@pytest.mark.parametrize(("gold", "pred"), UNEQUAL)
def test_unequal(gold: str, pred: str) -> None:
    assert not right(parse_answer(pred), parse_answer(gold))


@pytest.mark.parametrize("gold", [gold for gold, _ in EQUAL + UNEQUAL])
def test_reflexive(gold: str) -> None:
    assert right(parse_answer(gold), parse_answer(gold))


@pytest.mark.parametrize("name", sorted(FUNCTION_NAMES - {"factorial", "binom"}))
def test_every_function_of_the_grammar_can_be_evaluated_and_confirmed(name: str) -> None:
    plain, roundabout = parse_answer(f"{name}(x)"), parse_answer(f"{name}((x^2-x)/(x-1))")
    assert right(roundabout, plain)
    assert not right(parse_answer(f"{name}(x) + 10^{{-40}}"), plain)
    assert numeric.agree(plain, roundabout)
    assert symbolic.confirm(plain, roundabout)
