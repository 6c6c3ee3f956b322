"""Stories of several people who give, find, lose and halve things: each step changes what is known of somebody.

Stories of `word` follow a single count. Here the chain of thought says in words who has what, and not every sentence
matters to the question.
"""

import random
from typing import NamedTuple

from deltarl.rl.problems.registry import Draft, family
from deltarl.rl.problems.word import NAMES, THINGS


class Shape(NamedTuple):
    """What a level is made of."""

    people: int
    events: int


LEVELS = {1: Shape(2, 2), 2: Shape(2, 4), 3: Shape(3, 7), 4: Shape(4, 12), 5: Shape(5, 20), 6: Shape(6, 40)}
_MOST = 200


@family("trade", levels=LEVELS)
def trade(rng: random.Random, level: int) -> Draft:
    """2, 4, 7, 12, 20, 40 events between 2, 2, 3, 4, 5, 6 people; the question is of one of them or two."""
    shape = LEVELS[level]
    names, things = rng.sample(NAMES, shape.people), rng.choice(THINGS)
    counts = {name: rng.randint(5, 60) for name in names}
    sentences = [f"{name} has {count} {things}." for name, count in counts.items()]
    steps = []
    for _ in range(shape.events):
        sentence, step = _event(rng, counts)
        sentences.append(sentence)
        steps.append(step)
    question, answer, last = _question(rng, counts, things)
    return Draft(" ".join([*sentences, question]), answer, [*steps, *last])


def _event(rng: random.Random, counts: dict[str, int]) -> tuple[str, str]:
    """A sentence and the step it asks for; changes the counts."""
    name, other = rng.sample(list(counts), 2)
    n = rng.randint(2, 20)
    before, kind = counts[name], rng.choice(("gives", "half", "loses", "finds", "double"))
    if kind == "half" and before >= 4 and before % 2 == 0 and counts[other] + before // 2 <= _MOST:
        sentence = f"{name} gives {other} half."
        return sentence, f"{_change(counts, name, '/', 2)}, {_change(counts, other, '+', before // 2)}."
    if kind == "gives" and before > n and counts[other] + n <= _MOST:
        return f"{name} gives {other} {n}.", f"{_change(counts, name, '-', n)}, {_change(counts, other, '+', n)}."
    if kind == "double" and 2 * before <= _MOST:
        return f"{name} gets as many again.", f"{_change(counts, name, '*', 2)}."
    if before > n and (kind == "loses" or before + n > _MOST):
        return f"{name} loses {n}.", f"{_change(counts, name, '-', n)}."
    return f"{name} finds {n}.", f"{_change(counts, name, '+', n)}."


def _change(counts: dict[str, int], name: str, operator: str, operand: int) -> str:
    before = counts[name]
    counts[name] = {"+": before + operand, "-": before - operand, "*": before * operand, "/": before // operand}[
        operator
    ]
    return f"{name} has {before}{operator}{operand}={counts[name]}"


def _question(rng: random.Random, counts: dict[str, int], things: str) -> tuple[str, int, list[str]]:
    """The question, its answer and the step it takes, if any."""
    one, other = rng.sample(list(counts), 2)
    a, b = counts[one], counts[other]
    kind = rng.choice(("one", "together", "more"))
    if kind == "together":
        return f"How many {things} do {one} and {other} have?", a + b, [f"Together they have {a}+{b}={a + b}."]
    if kind == "more" and a > b:
        return f"How many more {things} than {other} does {one} have?", a - b, [f"That is {a}-{b}={a - b} more."]
    return f"How many {things} does {one} have?", a, []
