"""Families with a length and those with long solutions: every answer is worked out again from the text alone."""

import random
import re
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from deltarl.rl.problems import FAMILIES, ProblemSource, Size, generate, sized_family, utf8_bytes
from deltarl.rl.problems.repository import ENDS, STEPS

SIZED = [f.name for f in FAMILIES.values() if f.draw_sized is not None]
SIZES = [(name, level) for name in SIZED for level in FAMILIES[name].levels]
LONG = [(name, level) for name in ("recurrence", "trade") for level in FAMILIES[name].levels]


def solve_palindrome(text):
    return text.removeprefix("Reverse: ")[::-1]


def solve_recall(text):
    pairs = re.findall(r"(\w+)=(\d+)", text)
    values = dict(pairs)
    assert len(values) == len(pairs), "a key stands there twice"
    return " ".join(values[key] for key in text.split("Values of ")[1].strip("?").split())


def solve_stacks(text):
    body, asked = text.split("\nPop ")
    stacks = defaultdict(list)
    for sign, stack, element in re.findall(r"([+-])(\d\d)([a-z]?)", body):
        if sign == "+":
            stacks[stack].append(element)
        else:
            stacks[stack].pop()
    return " ".join(stacks[stack].pop() for stack in asked.strip("?").split())


def solve_needle(text):
    values = re.findall(r"The number of (\w+) is (\d+)\.", text)
    assert len({key for key, _ in values}) == len({value for _, value in values}) == len(values)
    return dict(values)[text.split()[-1].strip("?")]


def solve_tracing(text):
    known = {}
    for name, other, number in re.findall(r"VAR (\w+) = (?:VAR (\w+)|(\d+))\.", text):
        known[name] = number or known[other]
    wanted = text.split()[-1].strip("?")
    assert len(set(known.values())) > 1, "every variable of the text would be right"
    return {name for name, value in known.items() if value == wanted}


def solve_common_words(text):
    words, question = text.removeprefix("Words: ").split("\n")
    counts = Counter(words.split())
    count = int(match[0]) if (match := re.search(r"\d+", question)) else 1
    most = counts.most_common(count + 1)
    assert most[count - 1][1] >= 3 * most[count][1], "another word is nearly as frequent"
    return {word for word, _ in most[:count]}


def solve_repository(text):
    """The only function that has the lines of the description."""
    code, question = text.split("\n\nWhich function does this to a list of numbers? ")
    lines = set()
    for words in question.strip(".").split("; "):
        words = words[0].lower() + words[1:]
        number = (re.findall(r"\d+", words) or ["0"])[0]
        plain = words.replace(number, "{n}")
        found = [f"xs = {step.code.format(n=number)}" for step in STEPS if step.words == plain]
        lines |= set(found or [f"return {end.code}" for end in ENDS if end.words == plain])
    functions = {}
    for name, body in re.findall(r"def (\w+)\(xs\):((?:\n    .+)+)", code):
        assert name not in functions
        functions[name] = {line.strip() for line in body.strip().split("\n")}
    (answer,) = [name for name, body in functions.items() if body == lines]
    return answer


def solve_recurrence(text):
    before, last, first, second, n = map(
        int,
        re.fullmatch(r"a\(1\)=(\d+), a\(2\)=(\d+), .* of (\d+)a\(n-1\)\+(\d+)a\(n-2\)\. a\((\d+)\)\?", text).groups(),
    )
    for _ in range(n - 2):
        before, last = last, (first * last + second * before) % 100
    return str(last)


def solve_trade(text):
    counts = {}
    for sentence in re.findall(r"[^.?]+[.?]", text):
        number = int((re.findall(r"\d+", sentence) or ["0"])[0])
        match sentence.strip(" .?").split():
            case [name, "has", *_]:
                counts[name] = number
            case [name, "gives", other, what]:
                moved = counts[name] / 2 if what == "half" else number
                counts[name], counts[other] = counts[name] - moved, counts[other] + moved
            case [name, "gets", "as", "many", "again"]:
                counts[name] *= 2
            case [name, "loses" | "finds" as what, _]:
                counts[name] += number if what == "finds" else -number
            case ["How", "many", "more", _, "than", other, "does", name, "have"]:
                return f"{counts[name] - counts[other]:g}"
            case ["How", "many", _, "do", one, "and", other, "have"]:
                return f"{counts[one] + counts[other]:g}"
            case ["How", "many", _, "does", name, "have"]:
                return f"{counts[name]:g}"
            case _:
                raise AssertionError(f"no meaning for {sentence!r}")


def draw(name, level, count=12, split="train", seed=0, length=1200):
    source = ProblemSource(name, level, length=length if name in SIZED else None)
    return generate([source], split, count, seed)


@pytest.mark.parametrize(("name", "level"), SIZES + LONG)
def test_the_text_alone_gives_the_answer(name, level):
    for split in ("train", "test"):
        for p in draw(name, level, split=split):
            solved = globals()[f"solve_{name}"](p.problem)
            assert p.unordered == isinstance(solved, set)
            assert (set(p.answer.split(", ")) if p.unordered else p.answer) == solved
            assert p.solution.endswith(f"\\boxed{{{p.answer}}}")
            assert (p.problem + p.solution).isascii()


@pytest.mark.parametrize(("name", "level"), SIZES)
@pytest.mark.parametrize("length", [1000, 3000])
def test_texts_are_as_long_as_they_are_asked_to_be(name, level, length):
    for p in draw(name, level, count=6, length=length):
        assert 0.96 * length <= utf8_bytes(p.problem) <= length


@pytest.mark.parametrize("name", SIZED)
def test_short_texts_are_so_too(name):
    texts = [utf8_bytes(p.problem) for p in draw(name, 1, count=20, length=300)]
    assert max(texts) <= 300
    assert min(texts) >= 0.95 * 300
    assert sum(texts) / 20 >= 0.97 * 300


@pytest.mark.parametrize(("name", "level"), SIZES)
def test_a_length_that_is_too_short_is_refused_with_what_is_needed(name, level):
    with pytest.raises(ValueError, match=rf"{name}.* needs a length of .*, got 8; raise length"):
        draw(name, level, count=1, length=8)


def test_texts_run_out_of_keys_rather_than_go_on_for_ever():
    def measure(text):
        return 1 if "=" in text else 0

    with pytest.raises(ValueError, match=r"too few keys for more than the .* lower length"):
        FAMILIES["recall"].make(random.Random(0), 1, Size(26**3 + 100, measure))


@pytest.mark.parametrize(("name", "level"), SIZES + LONG)
def test_no_answer_is_right_for_many_problems(name, level):
    counts = Counter(p.answer for p in draw(name, level, count=60, length=1000))
    # An answer of one letter is right once in 26 by chance.
    assert counts.most_common(1)[0][1] <= 9


@pytest.mark.parametrize("name", ["needle", "recall", "tracing", "repository"])
def test_the_place_of_the_answer_is_no_hint(name):
    """The first and the last of what could be the answer are it no more often than chance has it."""
    level = {"needle": 2, "recall": 1, "tracing": 1, "repository": 1}[name]
    pattern = {
        "needle": r"is (\d+)\.",
        "recall": r"=(\d+)",
        "tracing": r"VAR (\w+) = \d",
        "repository": r"def (\w+)",
    }[name]
    problems = draw(name, level, count=120, length=1000)
    found = [(re.findall(pattern, p.problem), p.answer.split(", ")[0]) for p in problems]
    chance = sum(1 / len(options) for options, _ in found) / len(found)
    for place in (0, -1):
        assert sum(options[place] == answer for options, answer in found) / len(found) < 1.3 * chance + 0.06


def test_levels_of_tracing_have_as_many_variables_as_they_say():
    assert [len(draw("tracing", n, count=1)[0].answer.split(", ")) for n in (1, 2, 3, 4)] == [2, 5, 5, 9]


@pytest.mark.parametrize(
    ("name", "level", "least", "most"),
    [("recurrence", 4, 500, 1000), ("recurrence", 5, 1000, 2000), ("trade", 6, 750, 1200)],
)
def test_long_chains_of_thought_are_long_and_their_questions_short(name, level, least, most):
    for p in draw(name, level, count=100):
        assert least <= utf8_bytes(p.solution) <= most
        assert utf8_bytes(p.problem) < utf8_bytes(p.solution)


@pytest.mark.parametrize("name", ["recurrence", "trade"])
def test_every_step_of_a_long_solution_is_right(name):
    for level in FAMILIES[name].levels:
        for p in draw(name, level, count=30):
            steps = re.findall(r"(\d+)([-+*/])(\d+)(?:\+(\d+)\*(\d+))?=(\d+)", p.solution)
            assert len(steps) >= p.solution.count("\n")
            for a, operator, b, c, d, result in steps:
                assert eval(f"{a}{operator}{b}+{c or 0}*{d or 0}") == int(result)
            for total, kept in re.findall(r"=(\d+)->(\d+)", p.solution):
                assert int(total) % 100 == int(kept)


def test_a_length_belongs_to_a_family_that_has_one():
    with pytest.raises(ValueError, match="'needle' have a length: give length, in tokens"):
        ProblemSource("needle", 1)
    with pytest.raises(ValueError, match=r"'linear' have no length .*length = 300 .*families with a length are common"):
        ProblemSource("linear", 1, length=300)
    with pytest.raises(ValueError, match="length"):
        ProblemSource("needle", 1, length=0)


def test_lengths_are_counted_by_the_measure_that_is_given():
    def words(text):
        return len(text.split())

    for name in ("needle", "tracing", "common_words"):
        (p,) = generate([ProblemSource(name, 1, length=400)], "train", 1, 0, words)
        assert 385 <= words(p.problem) <= 400


def test_every_process_makes_the_same_problems_whatever_its_hash_seed():
    program = (
        "from deltarl.rl.problems import FAMILIES, generate\n"
        "from hashlib import blake2b\n"
        "s = [{'family': f.name, 'level': f.levels[-1]} | ({'length': 900} if f.draw_sized else {})"
        " for f in FAMILIES.values()]\n"
        "print(blake2b(repr(generate(s, 'test', 60, 5)).encode()).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True)
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout


def test_splits_are_disjoint_for_families_with_a_length():
    texts = {split: {p.problem for p in draw("palindrome", 1, 300, split, length=13)} for split in ("train", "test")}
    assert (len(texts["train"]), len(texts["test"])) == (300, 300)
    assert not texts["train"] & texts["test"]


def test_what_is_used_up_is_named_with_its_length():
    with pytest.raises(ValueError, match="palindrome level 1 length 11 has only about"):
        draw("palindrome", 1, count=200, length=11)


def test_registering_a_sized_family_twice_is_refused():
    with pytest.raises(ValueError, match="'needle' already"):
        sized_family("needle", levels=[1])(lambda rng, level, size: None)
