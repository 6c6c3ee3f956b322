"""Variables assigned to each other in a long text: the variable tracking of RULER (arXiv 2404.06654, section 3)."""

import random
import string
from typing import NamedTuple

from deltarl.rl.problems.filling import fill, sentences, spread
from deltarl.rl.problems.registry import Draft, Size, sized_family


class Shape(NamedTuple):
    """What a level is made of."""

    chains: int
    """At least two, else every variable of the text is in the answer."""
    hops: int
    """Assignments from another variable in each chain."""


LEVELS = {1: Shape(2, 1), 2: Shape(2, 4), 3: Shape(4, 4), 4: Shape(4, 8)}


@sized_family("tracing", levels=LEVELS)
def tracing(rng: random.Random, level: int, size: Size) -> Draft:
    """Which variables have a value, of 2 chains of 1 and 4 hops, and 4 chains of 4 and 8. The answer is a set."""
    shape = LEVELS[level]
    names = _names(rng, shape.chains * (shape.hops + 1))
    values = rng.sample(range(10_000, 100_000), shape.chains)
    chains = [names[i :: shape.chains] for i in range(shape.chains)]
    statements = [
        [
            f" VAR {name} = {f'VAR {before}' if before else value}."
            for before, name in zip(["", *chain], chain, strict=False)
        ]
        for chain, value in zip(chains, values, strict=True)
    ]
    head, question = "Follow the variables.", f"\nWhich variables are {values[0]}?"
    fixed = [head, *(s for chain in statements for s in chain), question]
    taken = fill(size, fixed, sentences(rng), f"tracing level {level}")
    text = head + "".join(spread(rng, _interleaved(rng, statements), taken)) + question
    return Draft(text, chains[0], [s.strip(" .") for s in statements[0]])


def _names(rng: random.Random, count: int) -> list[str]:
    names = dict[str, None]()
    while len(names) < count:
        names["".join(rng.choices(string.ascii_uppercase, k=5))] = None
    return list(names)


def _interleaved(rng: random.Random, chains: list[list[str]]) -> list[str]:
    """All statements in a random order in which each chain keeps its own."""
    order = [i for i, chain in enumerate(chains) for _ in chain]
    rng.shuffle(order)
    rest = [iter(chain) for chain in chains]
    return [next(rest[i]) for i in order]
