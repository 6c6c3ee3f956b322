"""Generated problems: right, distinct, reproducible, and never in both splits. Answers are recomputed from the text."""

import ast
import operator
import random
import re
from fractions import Fraction

import pytest

from deltarl.rl.problems import FAMILIES, Draft, ProblemSource, family, generate, split_of
from deltarl.rl.problems.registry import answer_text

ARITHMETIC = ("arithmetic", "brackets", "fractions", "linear", "word")  # the others are in test_task_families.py
SOURCES = [(name, level) for name in ARITHMETIC for level in FAMILIES[name].levels]
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def evaluate(text: str) -> Fraction:
    """The value of an expression by Python's own precedence, in exact fractions."""

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(int(n)):
                return Fraction(n)
            case ast.UnaryOp(ast.USub(), operand):
                return -value(operand)
            case ast.BinOp(left, op, right):
                return OPERATORS[type(op)](value(left), value(right))
        raise AssertionError(f"{text!r} is no arithmetic")

    return value(ast.parse(text, mode="eval").body)


def read_answer(text: str) -> Fraction:
    match = re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", text)
    return Fraction(f"{match[1]}{match[2]}/{match[3]}") if match else Fraction(int(text))


def side_at(side: str, x: Fraction) -> Fraction:
    return evaluate(re.sub(r"(\d*)x", lambda m: f"({m[1] or 1}*({x}))", side))


def solve_word(text: str) -> Fraction:
    """Act the story out, sentence by sentence."""
    counts: dict[str, int] = {}
    owner = ""
    for sentence in re.findall(r"[^.?]+[.?]", text):
        numbers = [int(n) for n in re.findall(r"\d+", sentence)]
        match sentence.strip(" .?").split():
            case [name, "has", _, "bags" | "boxes" | "packs", "of", *_]:
                owner, counts[name] = name, numbers[0] * numbers[1]
            case [name, "has", _, "times", *_]:
                counts[name] = numbers[0] * counts[owner]
            case [name, "has", _, _]:
                owner, counts[name] = name, numbers[0]
            case [name, "buys" | "finds", _, "more"]:
                counts[name] += numbers[0]
            case [name, "gives", other, _] if other != name and other not in counts:
                counts[name] -= numbers[0]
            case [name, "loses", _]:
                counts[name] -= numbers[0]
            case [name, "shares", *_]:
                counts["each"] = Fraction(counts[name], numbers[0])
            case ["How", "many", _, "does", name, "have"]:
                return Fraction(counts[name])
            case ["How", "many", "does", "each", "get"]:
                return counts["each"]
            case ["How", "many", _, "do", first, "and", second, "have"]:
                return Fraction(counts[first] + counts[second])
            case _:
                raise AssertionError(f"no meaning for {sentence!r}")
    raise AssertionError(f"no question in {text!r}")


def check_answer(name: str, problem: str, answer: Fraction) -> bool:
    if name == "linear":
        left, right = problem.split("=")
        return side_at(left, answer) == side_at(right, answer)
    return (solve_word if name == "word" else evaluate)(problem) == answer


@pytest.mark.parametrize(("name", "level"), SOURCES)
def test_answers_and_steps_are_right(name, level):
    for split in ("train", "test"):
        for p in generate([ProblemSource(name, level)], split, 250, seed=3):
            answer = read_answer(p.answer)
            assert check_answer(name, p.problem, answer), p
            assert answer_text(answer) == p.answer, "not in lowest terms"
            *steps, last = p.solution.split("\n")
            assert last == f"\\boxed{{{p.answer}}}"
            assert (p.family, p.level) == (name, level)
            for step in steps:
                sides = [side_at(side, answer) for side in step.split("=")]
                assert len(sides) > 1, p
                assert len(set(sides)) == 1, p
            if steps:
                assert side_at(steps[-1].split("=")[-1], answer) == answer, p


@pytest.mark.parametrize(("name", "level"), SOURCES)
def test_splits_are_disjoint_and_distinct_whatever_the_seed(name, level):
    texts = {"train": set(), "test": set()}
    for seed in range(4):
        for split, count in (("train", 300), ("test", 80)):
            problems = [p.problem for p in generate([ProblemSource(name, level)], split, count, seed)]
            assert len(set(problems)) == count
            texts[split].update(problems)
    assert not texts["train"] & texts["test"]


def test_about_a_fifth_of_all_problems_are_for_testing():
    texts = [f"{a}+{b}" for a in range(100) for b in range(100)]
    assert 0.18 < sum(split_of(text) == "test" for text in texts) / len(texts) < 0.22


def test_split_of_a_text_never_changes():
    """A changed hash would put problems that a saved model has trained on into its test set."""
    assert [text for text in map(str, range(40)) if split_of(text) == "test"] == ["1", "2", "7", "25", "30", "37"]


MIXTURE = [
    {"family": "arithmetic", "level": 4, "weight": 3},
    {"family": "word", "level": 2},
    {"family": "fractions", "level": 2, "weight": 0.5},
]


def test_same_seed_same_problems_and_a_larger_count_only_adds():
    few, many = generate(MIXTURE, "train", 40, seed=7), generate(MIXTURE, "train", 120, seed=7)
    assert many[:40] == few
    assert generate(MIXTURE, "train", 40, seed=8) != few
    random.seed(0)  # the module-level generator plays no part
    assert generate(MIXTURE, "train", 40, seed=7) == few


def test_problems_of_a_seed_are_the_same_in_every_process_and_version():
    first = generate([ProblemSource("arithmetic", 4), ProblemSource("word", 3)], "test", 1, seed=0)[0]
    story = "Eva has 49 cards. Eva buys 22 more. Eva buys 6 more. Eva loses 39. How many cards does Eva have?"
    assert first.problem == story


def test_mixture_follows_the_weights():
    problems = generate(MIXTURE, "train", 1800, seed=1)
    share = {name: sum(p.family == name for p in problems) / 1800 for name in FAMILIES}
    assert share["linear"] == 0
    for name, expected in (("arithmetic", 3 / 4.5), ("word", 1 / 4.5), ("fractions", 0.5 / 4.5)):
        assert abs(share[name] - expected) < 0.04


def test_arithmetic_levels_differ_as_documented():
    by_level = {n: generate([ProblemSource("arithmetic", n)], "train", 200, seed=0) for n in range(1, 7)}
    for level, problems in by_level.items():
        operands = {1: 2, 2: 3, 3: 3, 4: 4, 5: 5, 6: 6}[level]
        for p in problems:
            assert len(re.findall(r"\d+", p.problem)) == operands
            assert ("*" in p.problem) == (level >= 3)
            assert ("(" in p.problem) == (level >= 4)
            assert p.solution.count("\n") == (0 if level == 1 else operands - 1)
    assert all(re.fullmatch(r"\d{1,2}[+-]\d{1,2}", p.problem) and int(p.answer) >= 0 for p in by_level[1])


def test_levels_of_equations_and_stories():
    def draw(name, level):
        return generate([ProblemSource(name, level)], "train", 200, seed=0)

    for level in (1, 2, 3, 4):
        assert all((p.problem.count("x") == 2) == (level in (2, 4)) for p in draw("linear", level))
    assert all("frac" not in p.answer for level in (1, 2) for p in draw("linear", level))
    assert all("frac" in "".join(p.answer for p in draw("linear", level)) for level in (3, 4))
    for level in FAMILIES["word"].levels:
        assert all(p.solution.count("\n") == level for p in draw("word", level))


def test_texts_stay_short():
    for name, level in SOURCES:
        for p in generate([ProblemSource(name, level)], "train", 200, seed=5):
            assert len(p.problem) <= 180
            assert len(p.solution) <= 120
            assert (p.problem + p.solution).isascii()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ([{"family": "arithmetics", "level": 1}], r"'arithmetics'; there are arithmetic, .*did you mean 'arithmetic'"),
        ([{"family": "linear", "level": 9}], r"'linear' has no level 9; its levels are 1, 2, 3, 4"),
        ([{"family": "linear", "level": 1, "weight": 0}], "weight"),
        ([{"family": "linear", "level": 1, "weight": -1}], "weight"),
        ([{"family": "linear", "level": 1, "weight": float("inf")}], "weight"),
        ([{"family": "linear", "level": 1, "wieght": 1}], "wieght"),
        ([{"family": "linear"}], "level"),
        ([], "empty"),
    ],
)
def test_a_bad_spec_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        generate(spec, "train", 1, seed=0)


def test_a_bad_source_split_or_count_is_refused():
    with pytest.raises(ValueError, match="no level 0"):
        ProblemSource("linear", 0)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        generate(MIXTURE, "dev", 1, seed=0)
    with pytest.raises(ValueError, match="-1"):
        generate(MIXTURE, "train", -1, seed=0)


@pytest.fixture
def tiny_family():
    @family("tiny", levels=[1])
    def tiny(rng: random.Random, level: int) -> Draft:
        n = rng.randrange(40)
        return Draft(str(n), Fraction(-n, 6))

    yield
    del FAMILIES["tiny"]


@pytest.mark.usefixtures("tiny_family")
def test_a_new_family_is_one_function_and_says_when_it_is_used_up():
    problems = generate([ProblemSource("tiny", 1)], "test", 6, seed=0)
    assert {p.problem: p.solution for p in problems} == {
        "1": r"\boxed{-\frac{1}{6}}",
        "2": r"\boxed{-\frac{1}{3}}",
        "7": r"\boxed{-\frac{7}{6}}",
        "25": r"\boxed{-\frac{25}{6}}",
        "30": r"\boxed{-5}",
        "37": r"\boxed{-\frac{37}{6}}",
    }
    with pytest.raises(ValueError, match="tiny level 1 has only about 6 distinct test problems, too few for 7"):
        generate([ProblemSource("tiny", 1)], "test", 7, seed=0)


def test_registering_nonsense_is_refused():
    with pytest.raises(ValueError, match="'linear' already"):
        family("linear", levels=[1])(lambda rng, level: Draft("", 0))
    with pytest.raises(ValueError, match="no levels"):
        family("empty", levels=[])(lambda rng, level: Draft("", 0))
