"""A function to find by what it does in a long piece of code, after RepoQA (arXiv 2406.06025).

Unlike RepoQA's, the code is made up, a description is of the very steps that the function takes, names tell nothing,
and the answer is the function's name, not its code judged by similarity.
"""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from deltarl.rl.problems.filling import fill, new_word, new_words, spread
from deltarl.rl.problems.registry import Draft, Size, sized_family


class Operation(NamedTuple):
    """What a line does, in words and in code; `{n}` is its number."""

    words: str
    code: str


STEPS = (
    Operation("keep those above {n}", "[x for x in xs if x > {n}]"),
    Operation("keep those below {n}", "[x for x in xs if x < {n}]"),
    Operation("keep the multiples of {n}", "[x for x in xs if x % {n} == 0]"),
    Operation("drop the multiples of {n}", "[x for x in xs if x % {n}]"),
    Operation("add {n} to each", "[x + {n} for x in xs]"),
    Operation("multiply each by {n}", "[x * {n} for x in xs]"),
    Operation("take {n} from each", "[x - {n} for x in xs]"),
    Operation("leave out the first {n}", "xs[{n}:]"),
    Operation("keep only the last {n}", "xs[-{n}:]"),
    Operation("take one in {n}", "xs[::{n}]"),
)
ENDS = (
    Operation("return their sum", "sum(xs)"),
    Operation("return the largest", "max(xs)"),
    Operation("return the smallest", "min(xs)"),
    Operation("return how many there are", "len(xs)"),
    Operation("return them in reverse", "xs[::-1]"),
    Operation("return them sorted", "sorted(xs)"),
)


class Shape(NamedTuple):
    """What a level is made of."""

    steps: int
    twins: int
    """Functions that differ from the one described in one step alone."""


LEVELS = {1: Shape(1, 0), 2: Shape(2, 0), 3: Shape(3, 3)}
_MAX_DRAWS = 1000

Plan = tuple[tuple[int, int], ...]
"""The steps and the end of a function: index of the operation, and its number."""


@sized_family("repository", levels=LEVELS)
def repository(rng: random.Random, level: int, size: Size) -> Draft:
    """Functions of 1, 2, 3 steps; at level 3 three of them are nearly the one that is described."""
    shape = LEVELS[level]
    target = _plan(rng, shape.steps)
    plans = {frozenset(target)}  # in any order: two orders of the same steps may come to the same
    names = dict[str, None]()

    def add(plan: Plan) -> str:
        plans.add(frozenset(plan))
        names[name := f"{new_word(rng, (), 2)}_{new_word(rng, names, 3)}"] = None
        lines = [f"xs = {STEPS[i].code.format(n=n)}" for i, n in plan[:-1]]
        body = "".join(f"\n    {line}" for line in [*lines, f"return {ENDS[plan[-1][0]].code}"])
        return f"\n\ndef {name}(xs):{body}"

    def others() -> Iterator[str]:
        while True:
            yield add(_new(lambda: _plan(rng, shape.steps), plans))

    known = [add(target)]
    answer = next(iter(names))
    known += [add(_new(lambda: _twin(rng, target), plans)) for _ in range(shape.twins)]
    rng.shuffle(known)
    head = f"# {'/'.join(new_words(rng, 2))}.py"
    steps = "; ".join([STEPS[i].words.format(n=n) for i, n in target[:-1]] + [ENDS[target[-1][0]].words])
    question = f"\n\nWhich function does this to a list of numbers? {steps[0].upper()}{steps[1:]}."
    taken = fill(size, [head, *known, question], others(), f"repository level {level}", misses=3)
    functions = spread(rng, known, taken)
    constants = fill(size, [head, *functions, question], _constants(rng), "", misses=3)
    return Draft(head + "".join(spread(rng, constants, functions)) + question, answer)


def _constants(rng: random.Random) -> Iterator[str]:
    """Short lines for the rest of a text in which no whole function fits."""
    while True:
        yield f"\n{new_word(rng, ()).upper()} = {rng.randint(2, 99)}"


def _plan(rng: random.Random, steps: int) -> Plan:
    return *((i, rng.randint(2, 99)) for i in rng.sample(range(len(STEPS)), steps)), (rng.randrange(len(ENDS)), 0)


def _twin(rng: random.Random, plan: Plan) -> Plan:
    """The plan with another number, or another end."""
    place = rng.randrange(len(plan))
    end = place == len(plan) - 1
    changed = (rng.randrange(len(ENDS)), 0) if end else (plan[place][0], rng.randint(2, 99))
    return *plan[:place], changed, *plan[place + 1 :]


def _new(draw: Callable[[], Plan], taken: set[frozenset[tuple[int, int]]]) -> Plan:
    for _ in range(_MAX_DRAWS):
        if frozenset(plan := draw()) not in taken:
            return plan
    raise ValueError(f"too few functions of this level for a text that has {len(taken)} already; lower length")
