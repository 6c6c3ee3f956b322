"""Linear equations in x, such as `3x+5=20`."""

import random
from fractions import Fraction

from deltarl.rl.problems.registry import Draft, family


@family("linear", levels=range(1, 5))
def linear(rng: random.Random, level: int) -> Draft:
    """Levels 1 and 3 have x on one side, 2 and 4 on both; the solution of 1 and 2 is an integer, of 3 and 4 rarely."""
    # `a x + b = c x + d` with a > c, so that x stays on the left with a positive coefficient.
    a = rng.randint(2, 9)
    c = rng.randrange(1, a) if level in (2, 4) else 0
    b = _nonzero(rng, 30)
    if level <= 2:
        d = b + (a - c) * rng.randint(0 if level == 1 else -12, 20)
    else:
        d = rng.randint(-40, 40)
    problem = f"{a}x{b:+d}={_right_side(c, d)}"
    coefficient, constant = a - c, d - b
    if c:
        steps = [f"{a}x-{_term(c)}={d}{-b:+d}", f"{_term(coefficient)}={constant}"]
    else:
        steps = [f"{_term(coefficient)}={d}{-b:+d}={constant}"]
    value = Fraction(constant, coefficient)
    if coefficient > 1:
        quotient = f"x={constant}/{coefficient}"
        steps.append(quotient if str(value) == f"{constant}/{coefficient}" else f"{quotient}={value}")
    return Draft(problem, value, steps)


def _nonzero(rng: random.Random, largest: int) -> int:
    return rng.choice((-1, 1)) * rng.randint(1, largest)


def _term(coefficient: int) -> str:
    return "x" if coefficient == 1 else f"{coefficient}x"


def _right_side(coefficient: int, constant: int) -> str:
    if coefficient == 0:
        return str(constant)
    return _term(coefficient) + (f"{constant:+d}" if constant else "")
