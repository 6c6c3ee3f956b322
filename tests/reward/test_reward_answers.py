"""Answers of every kind beside their gold: sets, inequalities, labels, ratios, matrices, families, chains."""

from collections.abc import Iterator

import pytest

from deltarl.reward.verdict import VerdictKind
from deltarl.reward.verifier import Verifier


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier() as made:
        yield made


SAME = [
    # sets of reals in another notation
    (r"[\frac12, 8]", r"0.5 \leq x \leq 8"),
    (r"a \leqslant 2", r"(-\infty, 2]"),
    (r"x < 3", r"(-\infty, 3)"),
    (r"5 \ge x", r"x \le 5"),
    (r"x > 1", "1 < x"),
    (r"4 < m \leq 8 \text{ or } 10 \leq m < 12", r"(4, 8] \cup [10, 12)"),
    (r"x > 1 \text{ and } x < 3", "(1, 3)"),
    (r"\{x \mid x < \frac{3}{2}\} - \{-6\}", r"(-\infty, -6) \cup (-6, \frac32)"),
    (r"\{x \mid x > 0\}", r"\{t : t > 0\}"),
    (r"(-\infty, 0) \cup (0, \infty)", r"x \neq 0"),
    (r"\mathbb{R} \setminus \{2\}", r"x \ne 2"),
    (r"[0, 2]", r"[0, 1] \cup [1, 2]"),
    (r"x \in [1, 2]", r"1 \le x \le 2"),
    ("x < 1", "-x > -1"),
    ("f(2) < f(1) < f(4)", "f(4) > f(1) > f(2)"),
    # names that do not matter
    ("f(z) = z", "f(x) = x"),
    ("(P(x), Q(x)) = (2Cx + 1, x)", "(2cx + 1, x)"),
    (r"x = \frac{\pi}{6} + \pi k, \frac{\pi}{3} + \pi k", r"\frac{\pi}{6} + n\pi, \frac{\pi}{3} + n\pi"),
    (r"\frac{\pi}{4} + 2\pi k, k \in \mathbb{Z}", r"\frac{\pi}{4} + 2 k \pi"),
    ("f(n) = n, g(n) = 1", "(f(n), g(n)) = (n, 1)"),
    ("f(x) = 1", r"f(x) = 1 \text{ for all } x \in \mathbb{Q}"),
    # labels, measures, remarks
    ("1, 3", "Minimum: 1, Maximum: 3"),
    ("|AB| = 1", "1"),
    ("5", "f(3) = 5"),
    ("5", "AB = 5"),
    (r"\frac12", r"|AB| = \frac12"),
    (r"V_1 : V_2 = 11 : 21", "11:21"),
    (r"\rho \sin\theta = \sqrt3", r"\sqrt3 \csc\theta"),
    ("11", r"x \approx 11"),
    (r"\frac13", r"\frac13 \approx 0.33"),
    # numbers
    ("5:8", r"\frac58"),
    ("2:3:4", "4:6:8"),
    ("12", r"12^{\mathrm{th}}"),
    (r"2.653 \ \mathrm{m}", "2.65"),
    ("299.94", "300"),
    ("0.33", r"\frac13"),
    ("5.09", r"\frac{16}{\pi}"),
    (r"117.95\%", r"118\%"),
    (r"28\%", "28 percent"),
    (r"\frac{1}{12}", "0.0833333333333333"),
    ("②③", "2, 3"),
    ("{1, 3}", r"\{3, 1\}"),
    (r"\{1 \pm \sqrt5, -2\}", r"\{-2, 1 + \sqrt5, 1 - \sqrt5\}"),
    (r"5 \text{ m}", r"500 \text{ cm}"),
    (r"90 \text{ km/h}", r"25 \text{ m/s}"),
    (r"2 \text{ hours}", r"120 \text{ minutes}"),
    (r"1.5 \text{ m}^2", r"15000 \text{ cm}^2"),
    (r"\$5", r"500 \text{ cents}"),
    (r"2500000", r"2.5 \text{ million}"),
    (r"12\pi", r"12\pi \text{ cm}^2"),
    ("12", "12 cm"),
    (r"\frac{4!}{2! \cdot 2!}", r"\frac{4!}{2!2!}"),
    (r"72", r"2^{3}3^{2}"),
    (r"(0, \infty)", r"\mathbb{R}^+"),
    (r"\{x \in \mathbb{R} : 0 \le x < 1\}", "[0, 1)"),
    (r"x>0 \text{ and } y>1", r"y > 1 \text{ and } x > 0"),
    (r"x < a \text{ or } x > b", r"x < a \text{ or } x > b"),
    (r"(a, b) \cup (c, d)", r"(c, d) \cup (a, b)"),
    ("(1, 2)", "x = 1, y = 2"),
    (r"\{5\}", "5"),
    (r"101_2", "101₂"),
    # matrices
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\left[\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}\right]"),
    (r"\begin{bmatrix} x^{2/3} \\ 0 \end{bmatrix}", r"\begin{pmatrix} \sqrt[3]{x^2} \\ 0 \end{pmatrix}"),
    (r"\frac12 \begin{pmatrix} 2 \\ 4 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (
        r"\begin{pmatrix} 6 & 8 \end{pmatrix}",
        r"\begin{pmatrix} 1 & 2 \end{pmatrix} + \begin{pmatrix} 5 & 6 \end{pmatrix}",
    ),
    # sentences
    ("A stopped clock shows it more often.", "a stopped clock shows it more often"),
    ("12:05 a.m.", r"12:05 \text{ am}"),
]

DIFFERENT = [
    (r"[\frac12, 8]", r"0.5 < x \leq 8"),
    ("(0, 1)", "0 < 2x < 2"),  # not solved: the question handed back
    ("x < 3", "y < 3"),
    ("x < 3", "x > 3"),
    ("x < 3", r"x \leq 3"),
    ("x < 1", "x > -1"),
    ("x < 1", "-x < -1"),
    ("x > 1 \\text{ and } x < 3", r"x > 1 \text{ or } x < 3"),
    (r"(-\infty, -6) \cup (-6, 2)", r"(-\infty, 2)"),
    (r"[0, 2]", r"[0, 1) \cup (1, 2]"),
    ("(1, 2)", r"\{1, 2\}"),
    ("f(x) = x", "g(x) = x"),
    ("f(x) = ax + b", "f(x) = bx + a"),
    ("2n", "2k"),  # not a family of angles: n is the question's
    ("Paolo: 18, Qing: 14", "Paolo: 14, Qing: 18"),
    ("x^2 = 4", "2"),
    ("10", "2x = 10"),
    ("AB = 5", "AC = 5"),
    ("PQ = 5", "PR = 5"),
    ("4", "x^2 = 4"),
    ("x + y = 5", "5"),
    ("5:8", "8:5"),
    ("2:3:4", "2:3:5"),
    ("299.94", "301"),
    ("1.5", "2"),
    ("0.5", r"\frac{6}{11}"),
    ("0.5", r"\sqrt{0.3}"),
    ("0.6", r"\frac{601}{1000}"),
    (r"50\%", "50"),
    (r"x>0 \text{ and } y>1", r"x>1 \text{ and } y>0"),
    (r"x>0 \text{ and } y>0", "x>0"),
    ("1<x<3", r"x>1 \text{ and } y<3"),
    ("1:2:3", "0:0:0"),
    ("0:1:2", "0:2:1"),
    ("5", "5 million"),
    ("5", r"5 \text{ thousand}"),
    ("3", r"3 \text{ halves}"),
    ("5", r"5 \text{ is incorrect}"),
    (r"\mathbb{R}^+", r"\mathbb{R}"),
    (r"(-\infty,\infty)", r"\mathbb{R}^+"),
    (r"[1,4]", r"\{x\in\mathbb{Z}\mid 1\le x\le4\}"),
    ("x>1", r"\{x : y>1\}"),
    (r"\lceil\frac n2\rceil", r"\lfloor\frac n2\rfloor+1"),
    (r"\lceil x\rceil", r"\lfloor x\rfloor+1"),
    ("5", r"\text{-}5"),
    ("5", r"5\text{!}"),
    ("The answer is about -5 degrees", "The answer is about 5 degrees"),
    ("it rose by 3.5 units each day", "it rose by 3 5 units each day"),
    ("2", "2st"),
    (r"2^{100}-1", r"1.26765060023\times10^{30}"),
    ("5", r"5 \text{ for all } x, 7, 8"),
    ("5", r"5 \approx 7"),
    (r"(k,2k) \text{ where } k>0", r"(k,2k) \text{ where } k<0"),
    ("f(x)=x+1", "f(y)=x+1"),
    ("f(x)=x^2", "f(t)=tx"),
    ("x=1, y=2", "2, 1"),
    ("2", r"\frac{\text{d}}{\text{d}x} 2x"),
    ("1012", "101₂"),
    (r"5 \text{ m}", r"5 \text{ cm}"),
    (r"5 \text{ m}", r"5 \text{ s}"),
    (r"5 \text{ m}^2", r"5 \text{ m}"),
    (r"5 \text{ cats}", r"5 \text{ dogs}"),
    (r"\frac{1}{12}", "0.0833"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 && 2 \end{pmatrix}"),
    ("12:05 a.m.", "12:05 p.m."),
    ("A stopped clock shows it more often.", "a running clock shows it more often"),
    ("7", "1 < 7"),
    ("3", r"2 \le x \le 4"),
]


@pytest.mark.parametrize(("gold", "pred"), SAME)
def test_the_same_in_other_words(verifier: Verifier, gold: str, pred: str) -> None:
    (verdict,) = verifier.score([rf"\boxed{{{pred}}}"], [gold])
    assert verdict.kind is VerdictKind.RIGHT, verdict


@pytest.mark.parametrize(("gold", "pred"), DIFFERENT)
def test_not_the_same(verifier: Verifier, gold: str, pred: str) -> None:
    (verdict,) = verifier.score([rf"\boxed{{{pred}}}"], [gold])
    assert verdict.kind is not VerdictKind.RIGHT
    assert verdict.kind is not VerdictKind.ERROR or verdict.score is None, verdict


def test_no_gold_ends_a_run(verifier: Verifier) -> None:
    for gold in ("2 1/", "1 1/", r"\begin{pmatrix}", "{", r"\{x \in"):
        assert verifier.score([r"\boxed{1}"], [gold])[0].score is None
