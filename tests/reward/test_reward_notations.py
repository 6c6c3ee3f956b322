"""One answer in many notations, rule by rule: what a rule must accept, and the near miss that it must not."""

from collections.abc import Iterator

import pytest

from deltarl.reward.verdict import VerdictKind
from deltarl.reward.verifier import Verifier


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(timeout=20.0) as made:
        yield made


# By rule: (gold, pred) pairs that are the same, and pairs that are not.
RULES: dict[str, tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {
    "values in the order of their names": (
        [
            ("1,2", "x=1,y=2"),
            ("1,2", "y=2,x=1"),
            ("1,2", "x_1=2, x_2=1"),
            ("1,2", "x=2, x=1"),
            ("16, 3", "w=16, d=3"),
            ("x_1 = 1, x_2 = -2", r"x = -2 \text{ or } x = 1"),
            ("p=5,q=2;p=7,q=2", "(5,2),(7,2)"),
            ("(x, y, z) = (1, 2, 3)", "x=1, y=2, z=3"),
            ("(1, 2)", "(x = 1, y = 2)"),
            ("x > 2", "(x > 2)"),
        ],
        [
            ("1,2", "x=2,y=1"),
            ("1,2", "x=2,y=2"),
            ("a=1, b=2", "(2,1)"),
            ("A=2, B=-1", "-1, 2"),
            ("p=5,q=2;p=7,q=2", "(2,5),(2,7)"),
            ("x_1 = 1, x_2 = -2", "t=1, t=-2"),
            ("2", "x=2, y=3"),
            ("(1, 2)", "(x = 2, y = 1)"),
            ("(1, 2)", "[x = 1, y = 2)"),
        ],
    ),
    "times of day": (
        [
            ("3:45", "3:45"),
            ("3:45 p.m.", "15:45"),
            ("6 pm", "6:00 p.m."),
            ("3:45", "3:45 pm"),
            ("5:12", r"\frac{5}{12}"),
            (r"\frac{5}{12}", "5:12"),
            ("V_1 : V_2 = 11 : 21", "11:21"),
        ],
        [("3:45", "1:15"), ("10:24", "5:12"), ("6:00 p.m.", "6:00 a.m."), ("6:00 p.m.", "6:00"), ("1:20", "2:40")],
    ),
    "a logarithm without base": (
        [
            (r"\log x", r"\log x"),
            (r"\log(xy)", r"\log x+\log y"),
            ("3", r"\log_{10} 1000"),
            ("3", r"\frac{\log 8}{\log 2}"),
            (r"\lg 2", r"\log_{10} 2"),
        ],
        [("2", r"\log 100"), (r"\ln 2", r"\log 2"), (r"\log_{10} x", r"\log x"), (r"\log 2", r"\ln 2")],
    ),
    "what is asked for, before its value": (
        [
            ("5", "a+b=5"),
            ("60", r"\angle ABC=60^\circ"),
            (r"60^\circ", r"m\angle ABC = 60"),
            (r"\frac34", r"\tan\theta=\frac34"),
            (r"\sin \alpha=\frac{3}{5}", r"\frac35"),
            ("P(X=2)=0.3", "0.3"),
            (r"S_{\triangle ABC}=6", "6"),
            ("6", "xy = 6"),
            ("2x+1", "f'(x)=2x+1"),
            ("T(n)=3n+2", "3n + 2"),
            ("f(x)=2x+1", "y=2x+1"),
        ],
        [
            ("10", "2x=10"),
            ("0", "2x - 3y = 0"),
            ("4", "x^2=4"),
            ("x^2+1", "xy=x^2+1"),
            ("5", "a+b=6"),
            ("60", r"\angle ABC=50"),
            ("x+y=5", "5"),
            ("f(x)=2x+1", "g(x)=2x+1"),
            ("f(x)=2x+1", "z=2x+1"),
        ],
    ),
    "decimal commas": (
        [("3.14", "3,14"), ("1,22", "1.22"), ("0,111", "0.111"), ("1000.99", "1000,99"), ("3,14", "14, 3")],
        [("3.14", "3,15"), ("314", "3,14"), ("3", "3,14"), ("3, 14", "3.14"), ("1,5", "1.5")],
    ),
    "thousands between braces": (
        [(r"\{1000,2000\}", r"\{1,000, 2,000\}"), (r"x < 1000", r"\{x \mid x < 1,000\}")],
        [(r"\{1,2,3\}", r"\{1,23\}"), (r"\{1000\}", r"\{1,000\}"), ("1000", "(1,000)")],
    ),
    "temperatures and currencies": (
        [
            (r"25^\circ C", "25"),
            (r"25^\circ C", r"25^\circ"),
            (r"25^\circ\text{C}", r"25 \text{ degrees Celsius}"),
            ("5", "€5"),
            (r"\$5", "5 dollars"),
            (r"5 \text{ hours}", r"5 \mathrm{~hours}"),
            (r"20\$", "20"),
            ("Rs. 500", "500 rupees"),
            ("$12", "12"),
            (r"\$5", r"500 \text{ cents}"),
            ("25°C", r"25^{\circ}\mathrm{C}"),
        ],
        [(r"25^\circ C", r"25^\circ F"), ("€5", r"\$5"), ("$10", "10 cents"), ("£5", "€5")],
    ),
    "vectors": (
        [
            ("(1,2)", r"\langle 1,2\rangle"),
            (r"\vec{a} = (1,2)", "(1,2)"),
            (r"\mathbf{u}_{1} = (1, 2)", r"\vec{u}_1 = (1,2)"),
        ],
        [("(1,2)", r"\langle 2,1\rangle"), (r"\bar x", "x"), ("x'", "x"), (r"\hat{t}", "t")],
    ),
    "residues": (
        [
            (r"x \equiv 3 \pmod 7", r"3 \pmod 7"),
            (r"x \equiv 3 \pmod 7", r"x \equiv 10 \pmod{7}"),
            ("x ≡ 3 (mod 7)", "x ≡ 10 (mod 7)"),
            ("2", r"17 \bmod 5 = 2"),
        ],
        [
            (r"x \equiv 3 \pmod 7", r"x \equiv 3 \pmod 5"),
            (r"x \equiv 3 \pmod 7", "x = 3"),
            ("3", r"x \equiv 10 \pmod 7"),
            ("2", r"17 \bmod 5"),
            ("3", r"17 \bmod 5 = 3"),
        ],
    ),
    "fractions, colours": (
        [
            (r"\frac12", r"{1 \over 2}"),
            (r"\binom52", r"{5 \choose 2}"),
            ("5", r"\textcolor{red}{5}"),
            ("5", r"{\color{blue} 5}"),
        ],
        [(r"\frac12", r"{2 \over 1}"), ("5", r"\textcolor{red}{6}")],
    ),
    "words": (
        [
            ("Yes", r"\text{True}"),
            ("no", "False"),
            (r"\emptyset", r"\text{no solution}"),
            ("No solution", r"\{\}"),
            (r"\text{DNE}", r"\text{does not exist}"),
            ("No. It has non-zero determinant.", "No"),
            ("Yes, it does so.", "yes"),
            ("The function $f(x+1) - 1$ is odd.", "odd"),
            ("odd", r"\text{The function is odd}"),
            ("circle", "The locus is a circle."),
            ("b < a < c", "b, a, c"),
            (r"\text{red}", "red"),
            ("c > a > b", "c, a, b"),
        ],
        [
            ("Yes", "No"),
            ("Yes", "yes and no"),
            (r"\emptyset", "0"),
            ("No solution", "1"),
            ("No solution", "solution"),
            ("true", "not true"),
            ("odd", "The function $f(x+1)$ is not odd."),
            ("odd", "$f$ is odd and $g$ is even."),
            ("The function $f(x)$ is odd.", "The function $g(x)$ is odd."),
            ("The first number is odd.", "The second number is odd."),
            ("odd", "$f$ is even if $g$ is odd."),
            ("The function $f(x+1)$ is odd.", "even"),
            ("b < a < c", "c, a, b"),
            (r"\text{saw}", "was"),
            (r"\text{red}", "2red"),
            ("c > a > b", "b, a, c"),
            ("b < a < c", "a, b, c"),
        ],
    ),
    "introductions": (
        [
            ("x<3", "We find that $x<3$."),
            ("y=2x+1", "The solution is $y=2x+1$."),
            ("5", "Speed of the boat: $5$"),
            ("Solution is: $[x=-1, y=-5, z=4]$", "(-1,-5,4)"),
            ("Solution is: $[k=4]$", "4"),
            ("12.5", "approximately 12.5"),
            (r"$\approx 12.6$", "12.6"),
        ],
        [
            ("5", "x is not $5$"),
            ("5", "The answer is not $5$"),
            ("5", "less than: $5$"),
            ("$-5$", "answer - $5$"),
            ("5", "about 6"),
        ],
    ),
    "sets of reals": (
        [
            (r"1\leq|z|\leq \frac32", r"\left[-\frac32, -1\right] \cup \left[1, \frac32\right]"),
            ("|x|<3", "(-3,3)"),
            ("$-1<x \\leqslant 1:(-1,1]$", "(-1, 1]"),
            (r"(-\infty,-1)\cup(-1,0)", r"x < 0, x \neq -1"),
            (r"\{x \mid x \ne 0, x \in \mathbf{R}\}", r"(-\infty,0)\cup(0,\infty)"),
        ],
        [
            ("(-3,3)", "|x|<3"),
            ("|x|<3", "(-3,3]"),
            (r"1\leq|z|\leq 2", "[1,2]"),
            ("x<0", r"x<0, x\neq -1"),
            ("(-1,1]", "$-1<x \\leqslant 1:(-1,2]$"),
        ],
    ),
    "a name behind its value": (
        [
            ("7", "7 = x"),
            ("7 = x", "7"),
            ("7 = x", "x = 7"),
            ("x = 7", "7 = x"),
            ("2x + 1", "2x + 1 = y"),
            ("y = 2x + 1", "2x + 1 = y"),
            ("x = 1, y = 2", "1 = x, 2 = y"),
            (r"f^{-1}(x) = \frac{x-1}{2}", r"\frac{x-1}{2}"),
        ],
        [
            ("7", "6 = x"),
            ("7", "7 = x = 6"),
            ("7", "7 = 2x"),
            ("7", "7 = x^2"),
            ("5", r"5 = \pi"),
            ("x = 7", "7 = y"),
            (r"f^{-1}(x) = \frac{x-1}{2}", r"f(x) = \frac{x-1}{2}"),
            ("x", "x = x"),
            ("x = 1, y = 2", "2 = x, 1 = y"),
        ],
    ),
    "prices in millions": (
        [
            ("$5 million", "5,000,000"),
            (r"\$5\text{ million}", r"\$5,000,000"),
            ("$5 million", "5 million dollars"),
            ("36", "3 dozen"),
        ],
        [("$5 million", "5"), ("$5 million", "$5 billion"), ("$5 million", "5 million euros")],
    ),
    "articles": (
        [("parabola", "a parabola"), ("an ellipse", "the ellipse"), ("(0,\\infty)", "all positive real numbers")],
        [("parabola", "a hyperbola"), ("circle", "a small circle"), ("5", "the answer"), ("a", "a circle")],
    ),
    "the domain of an absolute value": (
        [(r"\ln|x|", r"\frac{1}{2}\ln x^2"), (r"\ln x", r"\ln|x|"), (r"\ln\sqrt{x^2}", r"\ln|x|")],
        [(r"\ln|x|", r"\ln x"), (r"\ln|x|+C", r"\ln x + C"), (r"x\ln|x|-x", r"x\ln x-x")],
    ),
    "typographic signs": (
        [
            (r"\sqrt{13}", "√13"),
            (r"2\sqrt{2.5}", "2√2.5"),
            (r"\sqrt{12}x", "√12x"),
            ("3", "∛27"),
            (r"\frac{3}{4}", "3⁄4"),
            (r"\frac{3}{4}", r"\nicefrac{3}{4}"),
            ("1234", r"1\ 234"),
            ("1234", "1~234"),
            ("1234.56", "1.234,56"),
            ("1.234,56", "1234.56"),
            ("2:3", "2 to 3"),
        ],
        [
            (r"\sqrt{3}", "√1 3"),
            (r"\sqrt{12x}", "√12x"),
            ("12", r"1\ 2"),
            ("1.234,56", "1.23456"),
            ("56", "5~6"),
            ("2", "2 to 3"),
        ],
    ),
    "families and constants": (
        [
            (r"x = k\pi, k \in \mathbb{Z}", r"n\pi"),
            (r"2k\pi + \frac{\pi}{3} (k \in \mathbb{Z})", r"\frac{\pi}{3} + 2n\pi"),
            ("x^2+C", "x^2 + c"),
            (r"\ln|x|+C", r"C + \ln|x|"),
        ],
        [
            (r"x = k\pi, k \in \mathbb{Z}", r"2n\pi"),
            ("x^2+C", "x^2"),
            ("x^2", "x^2+C"),
            ("x^2+C", "x^2+2c"),
            ("x+k", "x+n"),
            ("a+k", "a+c"),
        ],
    ),
    "operations to be done": (
        [
            (r"2^{\gcd(m,n)}-1", r"2^{\gcd(n,m)} - 1"),
            (r"\max(a,b)", r"\max\{a,b\}"),
            (r"\sum_{i=0}^{n} x_i", r"\sum_{k=0}^{n} x_k"),
            (r"\sum_{k=1}^n k", r"\frac{n(n+1)}2"),
            (r"F_n = \sum_{k=0}^{n-1} F_k F_{n-k-1}", r"F_n = \sum_{k=0}^{n-1} F_{n-k-1} F_k"),
            (r"C_{5}^{2}", "10"),
            (r"A_5^2", "20"),
        ],
        [
            ("2", r"\gcd(4,6)"),
            ("6", r"\max(5,6)"),
            ("5050", r"\sum_{k=1}^{100} k"),
            (r"\sum_{i=0}^n x_i", r"\sum_{i=1}^{n+1} x_i"),
            (r"\sum_{i=0}^n x_i", r"\sum_{i=0}^n x_n"),
            (r"C_5^2", "5"),
            (r"\max(a,b)", r"\min(a,b)"),
        ],
    ),
    "matrices": (
        [
            (r"\left|\begin{array}{ll}1 & 2\\2 & 1\end{array}\right|=-3", "-3"),
            (r"\begin{vmatrix}1 & 2\\2 & 1\end{vmatrix}=-3", "-3"),
            (r"\begin{bmatrix}1 & 2\end{bmatrix}^{T}", r"\begin{pmatrix}1 \\ 2\end{pmatrix}"),
            (
                r"\begin{bmatrix}1&2\\0&1\end{bmatrix}^{-1} = \begin{bmatrix}1&-2\\0&1\end{bmatrix}",
                r"\begin{bmatrix}1&-2\\0&1\end{bmatrix}",
            ),
            (r"\begin{cases} x=1 \\ y=2 \end{cases}", "(1,2)"),
            (
                r"\begin{cases} x & x>0 \\ -x & x\le 0\end{cases}",
                r"\begin{cases} x, & \text{if } x>0 \\ -x, & \text{if } x\le 0 \end{cases}",
            ),
        ],
        [
            ("4", r"\begin{vmatrix}2&0\\0&2\end{vmatrix}"),
            (r"\begin{bmatrix}1&-2\\0&1\end{bmatrix}", r"\begin{bmatrix}1&2\\0&1\end{bmatrix}^{-1}"),
            (
                r"\begin{cases} x & x>0 \\ -x & x\le 0\end{cases}",
                r"\begin{cases} -x, & \text{if } x>0 \\ x, & \text{if } x\le 0 \end{cases}",
            ),
            (r"[x=2,y=4]", "(4,2)"),
        ],
    ),
    "rounded decimals": (
        [
            ("6.0141", "6.01"),
            ("1.570796", "1.5708"),
            ("21.93", r"21 \frac{13}{14}"),
            ("3.2", r"\frac{16}{5}"),
            ("5.71", r"\frac{571}{100}"),
        ],
        [
            ("-3.2", r"-\frac{3199}{1000}"),
            ("3.2", "3.199"),
            ("3.14", "3.14159"),
            ("1.5708", "1.570796"),
            ("7.75", "7.7501"),
            ("7.75", "7.755001"),
            ("6.01", r"6 \frac{1}{64}"),
        ],
    ),
    "malformed LaTeX": (
        [
            ("x=1, y=2", r"x=1,\quady=2"),
            (r"-\frac74", "-\x0crac{7}{4}"),
            ("12, 13", r"\"$12$ and $13$\""),
            (r"2\pi r", r"2\pir"),
        ],
        [(r"-\frac74", "-\x0crac{4}{7}"), (r"2\pi r", r"2\pit")],
    ),
}

SAME = [(rule, *pair) for rule, (same, _) in RULES.items() for pair in same]
DIFFERENT = [(rule, *pair) for rule, (_, different) in RULES.items() for pair in different]


@pytest.mark.parametrize(("rule", "gold", "pred"), SAME)
def test_accepted(verifier: Verifier, rule: str, gold: str, pred: str) -> None:
    (verdict,) = verifier.score([rf"\boxed{{{pred}}}"], [gold])
    assert verdict.kind is VerdictKind.RIGHT, verdict


@pytest.mark.parametrize(("rule", "gold", "pred"), DIFFERENT)
def test_not_accepted(verifier: Verifier, rule: str, gold: str, pred: str) -> None:
    assert verifier.check_gold(gold) is None
    (verdict,) = verifier.score([rf"\boxed{{{pred}}}"], [gold])
    assert verdict.score == 0.0, verdict
