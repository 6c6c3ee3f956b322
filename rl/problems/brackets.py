"""A bracketed sum times a digit, plus or minus a digit, such as `(3+8)*2-5`: easy in three steps, hard at a glance."""

import random

from deltarl.rl.problems.registry import Draft, family

LARGEST_FACTOR = {1: 5, 2: 9}


@family("brackets", levels=LARGEST_FACTOR)
def brackets(rng: random.Random, level: int) -> Draft:
    """Operands of one digit; level 1 multiplies by 2 to 5, level 2 by 2 to 9. The factor stands on either side."""
    a, b, last = (rng.randint(1, 9) for _ in range(3))
    factor = rng.randint(2, LARGEST_FACTOR[level])
    sign = rng.choice((1, -1))
    inner = a + b
    product = inner * factor
    value = product + sign * last
    tail = f"{'+' if sign > 0 else '-'}{last}"
    on_the_right = rng.random() < 0.5
    text = f"({a}+{b})*{factor}{tail}" if on_the_right else f"{factor}*({a}+{b}){tail}"
    step = f"{inner}*{factor}" if on_the_right else f"{factor}*{inner}"
    return Draft(text, value, (f"{a}+{b}={inner}", f"{step}={product}", f"{product}{tail}={value}"))
