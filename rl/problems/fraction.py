"""Sums, differences and products of fractions, such as `1/3+1/4`."""

import random
from fractions import Fraction
from math import lcm

from deltarl.rl.problems.registry import Draft, family

# Level: largest denominator, operators, number of terms.
LEVELS = {2: (15, "+-", 2), 3: (20, "+-*", 2), 4: (12, "+-", 3)}


@family("fractions", levels=[1, *LEVELS])
def fractions(rng: random.Random, level: int) -> Draft:
    """Level 1: one denominator for both; 2: different denominators; 3: also products, larger; 4: three terms."""
    if level == 1:
        return _same_denominator(rng)
    largest, operators, terms = LEVELS[level]
    value = _proper(rng, largest)
    text, steps = str(value), []
    for _ in range(terms - 1):
        operator, operand = rng.choice(operators), _proper(rng, largest)
        while operand.denominator == value.denominator:
            operand = _proper(rng, largest)
        text += f"{operator}{operand}"
        value, step = _apply(value, operator, operand)
        steps.append(step)
    return Draft(text, value, steps)


def _same_denominator(rng: random.Random) -> Draft:
    denominator = rng.randint(2, 20)
    a, b = rng.randrange(1, denominator), rng.randrange(1, denominator)
    operator = rng.choice("+-")
    text = f"{a}/{denominator}{operator}{b}/{denominator}"
    numerator = a + b if operator == "+" else a - b
    value = Fraction(numerator, denominator)
    return Draft(text, value, [text + _reduced(numerator, denominator)])


def _proper(rng: random.Random, largest: int) -> Fraction:
    """A fraction between 0 and 1 in lowest terms."""
    denominator = rng.randint(2, largest)
    return Fraction(rng.randrange(1, denominator), denominator)


def _apply(left: Fraction, operator: str, right: Fraction) -> tuple[Fraction, str]:
    """The result, and the step that shows it: `1/3+1/6=2/6+1/6=3/6=1/2`."""
    start = f"{left}{operator}{right}"
    if operator == "*":
        numerator, denominator = left.numerator * right.numerator, left.denominator * right.denominator
        return Fraction(numerator, denominator), start + _reduced(numerator, denominator)
    denominator = lcm(left.denominator, right.denominator)
    a, b = int(left * denominator), int(right * denominator)
    numerator = a + b if operator == "+" else a - b
    expanded = f"={a}/{denominator}{operator}{b}/{denominator}"
    return Fraction(numerator, denominator), start + expanded + _reduced(numerator, denominator)


def _reduced(numerator: int, denominator: int) -> str:
    """`=3/6=1/2`, or only `=5/6` where there is nothing to cancel."""
    shown, lowest = f"={numerator}/{denominator}", f"={Fraction(numerator, denominator)}"
    return shown if shown == lowest else shown + lowest
