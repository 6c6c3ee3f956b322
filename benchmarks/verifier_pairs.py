"""Random pairs of a gold and an answer that are equal, or differ, by construction.

Each kind is a function that draws a gold, an answer equal to it in other writing, and one that a mistake would lead to.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from verifier_collections import (
    finite_set,
    interval,
    list_of_values,
    matrix,
    named_values,
    plus_minus,
    point,
    turned_bracket,
    union,
    unit_vector,
)
from verifier_expressions import (
    assigned,
    cases,
    equation,
    formula,
    polynomial,
    rational_function,
    sum_of_letters,
    trigonometric,
)
from verifier_numbers import (
    absolute_value,
    based,
    chance,
    complex_number,
    counting,
    decimals,
    endless_decimal,
    fraction,
    integer,
    logarithm,
    percent,
    pi_multiple,
    power_or_log,
    ratio,
    repeating,
    residue,
    rounded_value,
    scientific,
    surd,
    times_a_power_of_ten,
    worked_out,
)
from verifier_spelling import Draw, Hand
from verifier_words import angle, choice, clock, compound_unit, date, money, spelled_count, unit, words


@dataclass(frozen=True)
class RandomPair:
    kind: str
    gold: str
    pred: str
    right: bool


def random_pairs(count: int, seed: int) -> list[RandomPair]:
    """``count`` pairs, half of them right, of all kinds in turn. The same for the same seed."""
    hand = Hand(random.Random(seed))
    pairs: list[RandomPair] = []
    while len(pairs) < count:
        for kind, draw in KINDS.items():
            gold, right, wrong = draw(hand)
            pairs += [RandomPair(kind, gold, right, True), RandomPair(kind, gold, wrong, False)]
    return pairs[:count]


KINDS: dict[str, Callable[[Hand], Draw]] = {
    draw.__name__.replace("_", " "): draw
    for draw in (
        integer, fraction, decimals, rounded_value, repeating, percent, scientific, surd, pi_multiple, power_or_log,
        counting, absolute_value, complex_number, polynomial, rational_function, trigonometric, formula, equation,
        assigned, named_values, interval, union, finite_set, list_of_values, plus_minus, point, matrix, unit, money,
        angle, based, ratio, words, choice, compound_unit, date, clock, unit_vector, residue, chance, spelled_count,
        endless_decimal, turned_bracket, cases, worked_out, logarithm, times_a_power_of_ten, sum_of_letters,
    )
}  # fmt: skip
