"""Optimizer steps per iteration, by entropy."""

import math

import pytest

from deltarl.rl.objectives.updates import adapted_updates


@pytest.mark.parametrize(
    ("updates", "entropy", "expected"),
    [(4, 0.1, 3), (2, 0.1, 1), (1, 0.1, 1), (1, 0.5, 2), (3, 0.3, 4), (4, 0.5, 4), (2, math.nan, 2)],
)
def test_one_fewer_below_the_floor_and_one_more_above(updates, entropy, expected):
    assert adapted_updates(updates, entropy, 0.3, 4) == expected
