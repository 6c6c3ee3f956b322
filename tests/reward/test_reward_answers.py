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
    ("x + y = 5", "5"),
    ("5:8", "8:5"),
    ("2:3:4", "2:3:5"),
    ("299.94", "301"),
    ("1.5", "2"),
    (r"50\%", "50"),
    (r"5 \text{ m}", r"5 \text{ cm}"),
    (r"5 \text{ m}", r"5 \text{ s}"),
    (r"5 \text{ m}^2", r"5 \text{ m}"),
    (r"5 \text{ cats}", r"5 \text{ dogs}"),
    (r"\frac{1}{12}", "0.0833"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
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
    assert verdict.kind is not VerdictKind.ERROR, verdict
