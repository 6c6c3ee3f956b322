"""Completions whose verdicts are timed. The problem files hold no worked solutions: other problems' text stands in."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verifier_cases import Case, bare_gold, boxed

GSM8K = "gsm8k_test.jsonl"
COLLEGE = "college_math_ccby_only.jsonl"
_SEED = 20_261
_MIX = {"gsm8k": 600, "math": 600, "long": 300, "hard": 250, "labelled": 250}
_HARD_FILE = "hardverify_math_dev"


@dataclass(frozen=True)
class Problem:
    text: str
    answer: str


@dataclass(frozen=True)
class Pair:
    """A completion with its answer in a box, the bare gold, and whether it was made to be right."""

    completion: str
    gold: str
    right: bool


def read_problems(path: Path) -> list[Problem]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Problem(row["problem"], row["answer"]) for row in rows]


def make_workloads(data: Path, cases: Sequence[Case]) -> dict[str, list[Pair]]:
    """GSM8K-like and MATH-like completions, one for each problem, and a mix of 2,000."""
    gsm8k, college = read_problems(data / GSM8K), read_problems(data / COLLEGE)
    short = make_pairs(gsm8k, 2, 3)
    latex = make_pairs(college, 4, 8)
    long = make_pairs(college, 80, 300)
    labelled = [case for case in cases if case.set_aside is None]
    parts = {
        "gsm8k": short,
        "math": latex,
        "long": long,
        "hard": [_from_case(case) for case in labelled if case.file == _HARD_FILE],
        "labelled": [_from_case(case) for case in labelled if case.file != _HARD_FILE],
    }
    rng = random.Random(_SEED)
    mix = [pair for name, size in _MIX.items() for pair in rng.sample(parts[name], min(size, len(parts[name])))]
    rng.shuffle(mix)
    return {"GSM8K-like": short, "MATH-like": latex, "mix": mix}


def make_pairs(problems: Sequence[Problem], shortest: int, longest: int) -> list[Pair]:
    """For each problem its text, ``shortest`` to ``longest`` other texts, and the answer; every second one is wrong."""
    rng = random.Random(_SEED)
    pairs = []
    for index, problem in enumerate(problems):
        right = index % 2 == 0
        answer = problem.answer
        while not right and answer == problem.answer:
            answer = rng.choice(problems).answer
        steps = [other.text for other in rng.sample(problems, rng.randint(shortest, longest))]
        work = "\n".join(f"Step {number}. {step}" for number, step in enumerate(steps, 1))
        box = boxed(_restyle(answer, rng), "answer")
        pairs.append(Pair(f"{problem.text}\n{work}\nSo the answer is ${box}$.", problem.answer, right))
    return pairs


def _restyle(answer: str, rng: random.Random) -> str:
    """The answer as another hand may write it: half of them as they are."""
    answer = answer.removeprefix("$").removesuffix("$")
    if rng.random() < 0.5:
        return answer
    if answer.isdecimal() and len(answer) > 3:
        return f"{int(answer):,}"
    return answer.replace(r"\frac", r"\dfrac").replace("-", " - ").replace("=", " = ")


def _from_case(case: Case) -> Pair:
    completion = boxed(case.row["pred"], case.row["pred_is"])
    return Pair(completion, bare_gold(case.golds[0], case.row["gold_is"]), case.expected)
