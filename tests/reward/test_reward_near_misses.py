"""Rule by rule: what is the same as gold in another notation, and what only looks like it."""

from collections.abc import Iterator

import pytest

from deltarl.reward.verifier import Verifier

_A, _B = r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"
_DETERMINANT = r"\begin{vmatrix}1&2\\3&4\end{vmatrix}"
_COLUMN, _OTHER_COLUMN = r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}3\\4\end{pmatrix}"

_CHANGES = (
    "quadrillion|lakh|crore|gross|score|pairs|couples|mn|bn|K|hundredths|thousandth|eleventh|ppm|per hundred|permille"
    "|basis points|bps|halved|doubled|tripled|twice|negated|negative|reciprocal|inverse|opposite|conjugate|root|never"
    "|no|nope|untrue|excluded|maybe|or so|ish|?|too many|fewer|or any number|twentieth|negatively|million apples"
    "|unit fractions|ratio|remainder"
)
_OF_WHAT = (
    "apples|cats|cm|meters|square units|red balls|students|miles per hour|dollars|units|cm per second|different ways"
    "|people|feet|inches|positive integers|oranges|months|min|minutes|seconds|seeds|beds"
)
_DENIALS = (
    "wrong", "not", "false", "incorrect", "six", "not the answer", "twenty six", "minus", "opposite", "negative",
    "minus the answer", "twice the answer", "half", "maybe", "other than", "reciprocal",
)  # fmt: skip

# By rule: gold, answers that are the same, answers that are not.
RULES: dict[str, list[tuple[str, list[str], list[str]]]] = {
    "operations on matrices": [
        (f"{_A}^{{-1}}", [f"{_A}^{{-1}}"], [f"{_B}^{{-1}}", _A]),
        (f"|{_A}|", [f"|{_A}|"], [f"|{_B}|"]),
        ("-2", [f"{_DETERMINANT}=-2"], [f"{_DETERMINANT}=5", _DETERMINANT]),
        ("5", [], [f"{_DETERMINANT}=5", f"|{_A}|=5"]),
        ("11", [rf"{_COLUMN}\cdot{_OTHER_COLUMN}=11"], [rf"{_COLUMN}\cdot{_COLUMN}=11"]),
        (r"\begin{vmatrix}a&b\\c&d\end{vmatrix}", ["ad-bc"], ["ad+bc"]),
        ("ad+bc", [], [r"\begin{vmatrix}a&b\\c&d\end{vmatrix}=ad+bc"]),
        ("12", [], [rf"{_COLUMN}\cdot{_OTHER_COLUMN}=12", r"(1,2)\cdot(3,4)=12"]),
        (
            r"\begin{pmatrix}-2&1\\1.5&-0.5\end{pmatrix}",
            [rf"{_A}^{{-1}}=\begin{{pmatrix}}-2&1\\1.5&-0.5\end{{pmatrix}}"],
            [rf"{_B}^{{-1}}=\begin{{pmatrix}}-2&1\\1.5&-0.5\end{{pmatrix}}", f"{_A}^{{-1}}"],
        ),
    ],
    "minutes and the minimum": [
        ("5", [r"5\text{ min}", "5 min", r"\text{sum: }5", "5 sec"], [r"\min(5,6)", "min(5, 6)", r"\gcd(5,10)"]),
        (r"\min = 5", ["5", r"\text{min}=5"], ["6", r"\min = 6"]),
        (r"1\text{ hour}", [r"60\text{ min}", "60 min"], [r"61\text{ min}", "1 min"]),
        ("10 min", ["10", "10 minutes", r"10\text{ min}"], ["10 hours", "9 min"]),
    ],
    "names before a value": [
        ("5", [r"\text{Area}=5", r"\text{Total} = 5"], [rf"\text{{{words}}}=5" for words in _DENIALS]),
        ("5", [rf"\text{{{words}}}=5" for words in ("root", "power", "opposite side", "answer", "number of ways")], []),
        ("5", [r"\text{sum: }5"], [r"\text{negative: }5", r"\text{wrong: }5", r"\text{at least: }5"]),
    ],
    "words behind a value": [
        (
            "5",
            [rf"5\text{{ {words}}}" for words in _OF_WHAT.split("|")],
            [rf"5\text{{ {words}}}" for words in _CHANGES.split("|")],
        ),
        (r"5\text{ pairs}", [r"5\text{ pairs}"], ["5", "10"]),
        (r"5\text{ lakh}", ["500000", r"5\text{ lakh}"], ["5"]),
    ],
    "words and products of letters": [
        ("red", [r"\text{red}", "red"], ["der", "edr"]),
        ("cat", ["cat"], ["act", "tac"]),
        (r"\text{red}", ["red"], ["der"]),
        ("xy", ["yx"], ["xx"]),
        ("xyz", ["zyx"], ["xyy"]),
        ("ab+c", ["c+ba"], ["ac+b"]),
        ("2abc", ["2cab"], ["2cbb"]),
    ],
    "a gold that is solved": [
        ("x>2", ["2<x", r"(2,\infty)"], ["2x>4", "x+1>3"]),
        ("x=2", ["2", "2=x"], ["2x=4", "3x-6=0", "x-2=0"]),
        ("x=1,y=2", ["1,2", "y=2,x=1"], ["2x=2,3y=6"]),
        ("2x+3y=6", ["4x+6y=12"], ["4x+6y=6"]),
        ("y=2x+1", ["2x-y+1=0"], ["2x-y+2=0"]),
    ],
    "sampling is no proof where there are steps and corners": [
        ("x", [], [r"x+|\sin x-0.99999|+\sin x-0.99999"]),
        ("x+10^{300}", [], ["|x+10^{300}|"]),
        ("1", [], [r"\lfloor\tanh(1000)\rfloor"]),
        ("x", [], [r"x+|x^2-0.0001|-(x^2-0.0001)", r"x+\sqrt{(x^2-0.0001)^2}-(x^2-0.0001)"]),
        ("|x+1|", [r"\sqrt{x^2+2x+1}"], [r"\sqrt{x^2-2x+1}"]),
        (r"\ln|x^2-1|+C", [r"\ln|x-1|+\ln|x+1|+C"], [r"\ln|x-1|-\ln|x+1|+C"]),
        ("|x|", ["|-x|", r"\sqrt{x^2}"], ["x"]),
        ("2|x-2|", ["|4-2x|"], ["|4+2x|"]),
        (r"\lfloor x\rfloor+1", [r"1+\lfloor x\rfloor", r"\lfloor x+1\rfloor"], [r"\lceil x\rceil"]),
    ],
    "names of parameters": [
        (r"(n-2)\pi", [r"n\pi-2\pi"], [r"(m-2)\pi"]),
        (r"\frac{n(n-1)\pi}{2}", [], [r"\frac{k(k-1)\pi}{2}"]),
        (r"\frac{\pi}{6}+k\pi", [r"\frac{\pi}{6}+n\pi"], [r"\frac{\pi}{3}+n\pi"]),
        (r"\frac{\pi}{6}+2k\pi", [r"2n\pi+\frac{\pi}{6}", r"x=\frac{\pi}{6}+2n\pi, n\in\mathbb Z"], []),
        (r"\frac{\pi k}{2}-\frac{\pi}{8}", [r"\frac{(4n-1)\pi}{8}"], [r"\frac{(4n+1)\pi}{8}"]),
    ],
    "declarations and approximations": [
        ("5", [], [r"5, 6\in\mathbb R, 7\in\mathbb R", r"5\approx5.05"]),
        ("1,2", [], [r"1,2,3\in\mathbb Z"]),
        (r"\sqrt2", [r"\sqrt2\approx1.414"], [r"\sqrt2=1.414", r"\sqrt2\approx1.43", r"\sqrt2\approx2"]),
        (r"\pi", [r"\pi\approx3", r"\pi\approx3.1"], [r"\pi\approx4"]),
    ],
    "notations of units": [
        (
            r"12\text{ cm}^2",
            [r"12\mathrm{cm^2}", r"12\text{ cm²}", r"12\text{ sq cm}", r"12\ \mathrm{cm^{2}}"],
            ["12 cm"],
        ),
        (r"5\text{ m/s}^2", [r"5\mathrm{m/s^2}", r"5\text{ m/s²}"], [r"5\mathrm{m/s}"]),
        (r"12\text{ m}", ["12 m"], ["12 n", "13 m", "12 s"]),
        (r"\$5", [r"5\text{ USD}", "5 USD"], [r"5\text{ EUR}"]),
        (r"2\text{ kJ}", [r"2000\text{ J}"], [r"2\text{ J}", r"2000\text{ N}"]),
    ],
    "words for answers": [
        (r"\text{no solution}", [r"\text{There is no solution}", r"\text{No solutions exist}"], ["0"]),
        (r"\mathbb R", [r"\text{all reals}"], [r"\text{no reals}"]),
        ("4", [r"\text{four}"], [r"\text{five}", r"\text{four thousand}"]),
        ("25", [r"\text{twenty-five}"], [r"\text{twenty-six}"]),
    ],
    "decorations": [
        (
            "5",
            [r"\therefore 5", r"5\ \checkmark", r"5\blacksquare", r"\large 5", r"\underline{5}", r"\mathbf{5}"],
            [r"\therefore 6", r"\large 55"],
        ),
        ("x=5", [r"\therefore x=5", r"\mathbf{x = 5}"], [r"\mathbf{x = 6}"]),
        (r"\frac12", [r"\textbf{$\frac12$}", r"\text{$\frac12$}"], [r"\text{$\frac13$}"]),
        (r"\overline z", [r"\bar z"], ["z", r"\hat z"]),
        ("101_2", [r"101_{\text{two}}"], [r"101_{\text{three}}"]),
    ],
    "sets and chains": [
        (r"(0,1)\cup(1,2)", [r"(0,2)\setminus\{1\}"], ["(0,2)"]),
        ("1,3", [r"x\in\{1,3\}"], [r"x\in\{1,2\}", r"x\in[1,3]"]),
        ("x=1, x=3", [r"x\in\{3,1\}"], [r"y\in\{1,3\}"]),
        ("x=1, y=3", [], [r"x\in\{1,3\}"]),
        ("7", ["y=x=7"], ["y=x=8", "y=6=7"]),
        ("x=5", ["x=x=5"], ["x=y+1=5"]),
    ],
}


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(timeout=20.0) as made:
        yield made


@pytest.mark.parametrize("rule", RULES)
def test_the_same_is_accepted_and_the_near_miss_is_not(verifier: Verifier, rule: str) -> None:
    for gold, same, other in RULES[rule]:
        verdicts = verifier.score([rf"\boxed{{{answer}}}" for answer in (*same, *other)], [gold] * len(same + other))
        refused = [answer for answer, verdict in zip(same, verdicts, strict=False) if not verdict.correct]
        accepted = [answer for answer, verdict in zip(other, verdicts[len(same) :], strict=True) if verdict.correct]
        assert not refused, f"refused for {gold}"
        assert not accepted, f"accepted for {gold}"
