"""Integer expressions such as `(3+8)*2-5`, solved one operation a line."""

import random
from dataclasses import dataclass

from deltarl.rl.problems.registry import Draft, family, operand_text

_PRECEDENCE = {"+": 1, "-": 1, "*": 2}


@dataclass(frozen=True)
class Shape:
    """What every expression of a level looks like."""

    terms: int
    products: bool
    brackets: bool
    largest_operand: int
    lowest: int
    """Bounds of every intermediate result."""
    highest: int


LEVELS = {
    1: Shape(terms=2, products=False, brackets=False, largest_operand=99, lowest=0, highest=198),
    2: Shape(terms=3, products=False, brackets=False, largest_operand=99, lowest=-300, highest=300),
    3: Shape(terms=3, products=True, brackets=False, largest_operand=50, lowest=-500, highest=500),
    4: Shape(terms=4, products=True, brackets=True, largest_operand=50, lowest=-500, highest=500),
    5: Shape(terms=5, products=True, brackets=True, largest_operand=99, lowest=-999, highest=999),
    6: Shape(terms=6, products=True, brackets=True, largest_operand=999, lowest=-9999, highest=9999),
}


@dataclass(frozen=True)
class Expression:
    text: str
    value: int
    precedence: int
    steps: tuple[str, ...]


@family("arithmetic", levels=LEVELS)
def arithmetic(rng: random.Random, level: int) -> Draft:
    """Level 1 is `a+b` or `a-b`, never below 0; then come more terms, products, brackets and larger operands."""
    shape = LEVELS[level]
    while True:
        expression = _grow(rng, shape, shape.terms)
        if expression is not None and _fits(expression.text, shape):
            break
    # A single operation has nothing to show but its result.
    steps = expression.steps if shape.terms > 2 else ()
    return Draft(expression.text, expression.value, steps)


def _fits(text: str, shape: Shape) -> bool:
    return ("(" in text) == shape.brackets and ("*" in text) == shape.products


def _grow(rng: random.Random, shape: Shape, terms: int) -> Expression | None:
    """A random expression of so many terms, or None if a value leaves the bounds of the level."""
    if terms == 1:
        return _number(rng.randint(1, shape.largest_operand))
    operator = rng.choice("+-*" if shape.products else "+-")
    if operator == "*":
        # One factor has a single digit: larger products are too much for one step.
        operands = [_grow(rng, shape, terms - 1), _number(rng.randint(2, 9))]
        rng.shuffle(operands)
    else:
        left_terms = rng.randint(1, terms - 1)
        operands = [_grow(rng, shape, left_terms), _grow(rng, shape, terms - left_terms)]
    left, right = operands
    if left is None or right is None:
        return None
    result = _combine(left, operator, right)
    return result if shape.lowest <= result.value <= shape.highest else None


def _number(value: int) -> Expression:
    return Expression(str(value), value, precedence=3, steps=())


def _combine(left: Expression, operator: str, right: Expression) -> Expression:
    precedence = _PRECEDENCE[operator]
    value = {"+": left.value + right.value, "-": left.value - right.value, "*": left.value * right.value}[operator]
    # `a+(b-c)` keeps its brackets too, so that the text names the order in which the steps are done.
    left_text = f"({left.text})" if left.precedence < precedence else left.text
    right_text = f"({right.text})" if right.precedence <= precedence else right.text
    step = f"{left.value}{operator}{operand_text(right.value)}={value}"
    return Expression(left_text + operator + right_text, value, precedence, (*left.steps, *right.steps, step))
