"""A bracketed sum times a digit, plus or minus digits, such as `(3+8)*2-5`: easy step by step, hard at a glance."""

import random
from typing import NamedTuple

from deltarl.rl.problems.registry import Draft, family


class Shape(NamedTuple):
    """What a level is made of."""

    largest_factor: int
    tail_terms: int


LEVELS = {1: Shape(5, 1), 2: Shape(9, 1), 3: Shape(9, 2), 4: Shape(9, 3)}


@family("brackets", levels=LEVELS)
def brackets(rng: random.Random, level: int) -> Draft:
    """Operands of one digit; the factor stands on either side of the bracket, 1 to 3 terms follow."""
    shape = LEVELS[level]
    a, b, factor = rng.randint(1, 9), rng.randint(1, 9), rng.randint(2, shape.largest_factor)
    inner = a + b
    value = inner * factor
    if rng.random() < 0.5:
        text, product = f"({a}+{b})*{factor}", f"{inner}*{factor}={value}"
    else:
        text, product = f"{factor}*({a}+{b})", f"{factor}*{inner}={value}"
    steps = [f"{a}+{b}={inner}", product]
    for _ in range(shape.tail_terms):
        term = rng.choice((1, -1)) * rng.randint(1, 9)
        steps.append(f"{value}{term:+d}={value + term}")
        value += term
        text += f"{term:+d}"
    return Draft(text, value, steps)
