"""What a problem says about its answer, and what follows from it."""

import time

import pytest

from deltarl.reward.form import refusal
from deltarl.reward.parse import parse_answer
from deltarl.reward.question import UNKNOWN, expressions, questions_of, read_question
from deltarl.reward.rewards import RewardSpec, Scorer
from deltarl.reward.undone import leaves_undone
from deltarl.reward.verdict import Reason
from deltarl.reward.verifier import Verifier


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Which is prime? (A) 9 (B) 11 (C) 15", {"A": "9", "B": "11", "C": "15"}),
        ("How far?\nOptions: A)5(√3 + 1); B)6; C)None of these", {"A": "5(√3 + 1)", "B": "6", "C": "None of these"}),
        ("Pick one.\nA. red\nB. blue\nC. 5 km\n\nExplain.", {"A": "red", "B": "blue", "C": "5 km"}),
        (r"$\textbf{(A)}\ 5\qquad\textbf{(B)}\ \frac12\qquad\textbf{(C)}\ 7$", {"A": "5", "B": r"\frac12", "C": "7"}),
        ("**A)** one\n**B)** two", {"A": "one", "B": "two"}),
        ("(A) 1 (B) 2 is an example.\nNow: (A) 3 (B) 4", {"A": "3", "B": "4"}),
        ("Mr. A. B. Smith has 5 cows. How many cows?", {}),
        ("What is the area of triangle A?", {}),
        ("(C) 1 (D) 2", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_options(text: str, options: dict[str, str]) -> None:
    assert read_question(text).options == options


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("What percent of 50 is 20?", True),
        ("m is what percentage of x?", True),
        ("By what percentage did it rise?", True),
        ("Find the percent increase.", True),
        ("Give the share as a percent.", True),
        ("What is 20% of 50?", False),
        ("What is 20 percent of 50?", False),
        ("A shop gives 20 percent off. What is the price?", False),
        ("If 30 percent of x is 5, what is x?", False),
    ],
)
def test_asks_percent(text: str, asks: bool) -> None:
    assert read_question(text).asks_percent is asks


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        (r"Compute $17 \cdot 23$.", True),
        ("What is 17*23?", True),
        (r"What is $\sqrt{49}$?", True),
        ("Find the value of x + 1.", True),
        ("(3+8)*2-5+7-1=", True),
        ("What is 17 times 23?", True),
        ("What is log 100?", True),
        ("What is 5 in terms of $x$?", False),
        ("In how many ways can 5 people sit in a row?", False),
        ("What is $x$ in terms of $y$?", False),
    ],
)
def test_asks_value(text: str, asks: bool) -> None:
    assert read_question(text).asks_value is asks


def test_expressions_are_the_formulas_and_sides_of_equations() -> None:
    shown = expressions(read_question(r"Let $f(x) = x^2$. What is $2 + 3 =$ ? And 4*5? See $\broken{$."))
    assert {parse_answer(text) for text in ("x^2", "2 + 3", "4*5")} <= set(shown)


@pytest.mark.parametrize(
    ("question", "pred", "gold", "reason"),
    [
        (r"Compute $17 \cdot 23$.", r"17 \cdot 23", "391", Reason.ECHO),
        (r"Compute $17 \cdot 23$.", r"23 \cdot 17", "391", Reason.ECHO),
        ("What is 17*23?", r"17 \times 23", "391", Reason.ECHO),
        (r"What is $\sqrt{12}$ in simplest form?", r"\sqrt{12}", r"2\sqrt3", Reason.ECHO),
        ("Expand $(x+1)^2$.", "(1+x)^2", "x^2+2x+1", Reason.ECHO),
        ("Rewrite $2x+3y=6$ in slope-intercept form.", "3y+2x=6", r"y=-\frac23x+2", Reason.ECHO),
        ("Expand $(x+1)^2$.", "x^2+2x+1", "x^2+2x+1", None),
        ("Let $f(x) = x^2+1$. What is f(x)?", "1+x^2", "x^2+1", None),  # gold is written so as well
        (r"Which is more, $2\sqrt3$ or 3?", r"2\sqrt3", r"2\sqrt3", None),
        ("A coin lands heads with probability 0.5. With which does it not?", "0.5", r"\frac12", None),
        ("Of $x = 2$ and $x = 3$, which is even?", "x = 2", "2", None),
        ("Compute it.", "400 - 9", "391", Reason.UNSIMPLIFIED),
        ("Compute it.", r"\frac{782}{2}", "391", Reason.UNSIMPLIFIED),
        ("Compute it.", "6!", "720", Reason.UNSIMPLIFIED),
        ("Compute it.", r"\sqrt{4}", "2", Reason.UNSIMPLIFIED),
        ("Compute it.", r"3 \times 10^8", "300000000", None),
        ("Compute it.", r"\frac{2\pi}{3}", r"\frac23\pi", None),
        ("Compute it.", "0.5", r"\frac12", None),
        ("Compute it.", "2^{100} - 1", "2^{100} + 0 - 1", None),  # gold is left so as well
        ("How many ways are there?", "6!", "720", None),
        (r"Simplify $\frac{48}{18}$.", r"\frac{16}{6}", r"\frac83", Reason.UNSIMPLIFIED),
        ("Answer as a common fraction.", r"-\frac{2}{4}", r"-\frac12", Reason.UNSIMPLIFIED),
        ("How much is left?", r"\frac{2}{4}", r"\frac12", None),
        ("Expand it.", "(x+1)(x+1)", "x^2+2x+1", Reason.UNSIMPLIFIED),
        ("Factor it.", "x^2+2x+1", "(x+1)^2", Reason.UNSIMPLIFIED),
        ("What is it?", "(x+1)(x+1)", "x^2+2x+1", None),
        ("What is it?", "x = x", "y", Reason.TAUTOLOGY),
        ("What is it?", "2 + 3 = 5", "5", None),
    ],
)
def test_refusal_of_what_is_equal(question: str, pred: str, gold: str, reason: Reason | None) -> None:
    assert refusal(parse_answer(pred), parse_answer(gold), read_question(question)) is reason


@pytest.mark.parametrize(
    ("question", "pred", "gold", "undone"),
    [
        (r"Compute $\sin(\pi/2)$.", r"\sin(5\pi/2)", "1", True),
        (r"Compute $\sin(\pi/2)$.", r"\sin(\pi/2) = 1", "1", False),
        (r"Compute $\ln 8$.", r"\ln 8", r"3\ln 2", False),
        (r"What is it?", r"\sin(5\pi/2)", "1", False),
        ("What is log 100?", r"\log_{10}100", "2", True),
        ("Factor it completely.", "(x-1)(x^2-1)", "(x-1)^2(x+1)", True),
        ("Factor it completely.", "(x-1)(x-1)(x+1)", "(x-1)^2(x+1)", False),
        ("Factor it completely.", "(x-1)(4x+4)", "4(x-1)(x+1)", True),
    ],
)
def test_what_is_left_undone(question: str, pred: str, gold: str, undone: bool) -> None:
    assert leaves_undone(parse_answer(pred), parse_answer(gold), read_question(question)) is undone


def test_without_a_question_only_much_arithmetic_is_refused() -> None:
    gold = parse_answer("72")
    assert refusal(parse_answer("2^{3} 3^{2}"), gold, UNKNOWN) is None
    assert refusal(parse_answer("+".join(["6"] * 12)), gold, UNKNOWN) is Reason.UNSIMPLIFIED


def test_questions_come_from_a_column_or_the_prompt() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    assert questions_of(["p"], {"question": ["q"], "problem": ["r"]}) == ["q"]
    assert questions_of(["p"], {"problem": ["r"]}) == ["r"]
    assert questions_of(["p", chat, 5, []], {}) == ["p", "2+2?", None, None]


def test_the_math_reward_looks_at_the_question() -> None:
    with_question = {"answer": ["391"], "question": [r"Compute $17 \cdot 23$."]}
    scorer = Scorer([RewardSpec("math")])
    assert scorer.score(["?"], [r"\boxed{17 \cdot 23}"], with_question).scores == [0.0]
    assert scorer.score(["?"], [r"\boxed{17 \cdot 23}"], {"answer": ["391"]}).scores == [1.0]
    assert scorer.score([r"What is 17*23?"], [r"\boxed{17 \cdot 23}"], {"answer": ["391"]}).scores == [0.0]


@pytest.mark.parametrize(
    "unit", ["$", "$$", "1", "1 ", "1+", "(A", "A)", "what is ", "(", "\\textbf{(A)} ", "percent "]
)
def test_reading_is_linear(unit: str) -> None:
    started = time.monotonic()
    expressions(read_question(unit * (1_000_000 // len(unit))))
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize(
    ("question", "gold", "same", "other"),
    [
        (
            "Factor completely.",
            "(x-1)(x+1)(x+2)",
            [r"(x+2)(x-1)(x+1)", r"(1-x)(-1-x)(x+2)", r"-(1-x)(x+1)(x+2)"],
            [
                r"(x^2-1)(x+2)",
                r"x^3+2x^2-x-2",
                r"\frac{(x-1)^2(x+1)(x+2)(x^2+1)}{(x-1)(x^2+1)}",
                r"(x-x+1)(x^2-1)(x+2)",
                r"\frac{(x^2-1)^2(x+2)^2}{(x^2-1)(x+2)}",
            ],
        ),
        (
            "Factor completely.",
            "3(x-2)(x+2)",
            ["3(x+2)(x-2)", "(x-2)(x+2)\\cdot 3"],
            ["(3x-6)(x+2)", "3(x^2-4)", "3x^2-12"],
        ),
        ("Factor completely.", "(x-1)(x+1)", ["(x+1)(x-1)"], [r"\sqrt{x^2-1}\sqrt{x^2-1}"]),
        ("Factor completely.", "x^2(x-1)", ["x\\cdot x(x-1)", "(x-1)x^2"], ["x(x^2-x)", "x^3-x^2"]),
        (
            "What is the prime factorization of 360?",
            r"2^3\cdot3^2\cdot5",
            [r"2\cdot2\cdot2\cdot3\cdot3\cdot5", r"5\cdot 3^2\cdot 2^3"],
            ["360", r"36\cdot 10", r"8\cdot 9\cdot 5", r"2^3\cdot 45"],
        ),
        ("What is the factored form of $x^2-1$?", "(x-1)(x+1)", ["(x+1)(x-1)"], ["x^2-1"]),
        ("Factor completely.", "(2x-1)(x+3)", [r"2(x-\frac12)(x+3)", "(x+3)(2x-1)"], ["2x^2+5x-3"]),
        ("Find the largest prime factor of 360.", "5", ["5"], []),
        ("Factor completely.", "(a-b)(a^2+ab+b^2)", ["(a^2+ab+b^2)(a-b)"], ["a^3-b^3"]),
        ("Factor completely.", "2x(x+3)", ["2x(x+3)", "x\\cdot2(3+x)"], ["x(2x+6)", "2(x^2+3x)"]),
    ],
)
def test_factored_means_completely(question: str, gold: str, same: list[str], other: list[str]) -> None:
    answers = [rf"\boxed{{{answer}}}" for answer in (*same, *other)]
    with Verifier() as verifier:
        verdicts = verifier.score(answers, [gold] * len(answers), [question] * len(answers))
    assert [verdict.correct for verdict in verdicts] == [True] * len(same) + [False] * len(other), verdicts
    assert {verdict.reason for verdict in verdicts[len(same) :]} <= {Reason.UNSIMPLIFIED, Reason.ECHO}
