"""Scores to advantages, against plain numpy."""

import numpy as np
import pytest

from deltarl.rl.advantages import group_advantages

NAN = float("nan")
SCORES = np.array([[1.0, 0.0, 0.0, 1.0], [0.2, 0.9, 0.4, 0.1], [0.0, 0.0, 1.0, 0.0]])
MODES = ["group", "batch", "none"]


@pytest.mark.parametrize("mode", MODES)
def test_values(mode):
    centred = SCORES - SCORES.mean(1, keepdims=True)
    scale = {"group": SCORES.std(1, ddof=1, keepdims=True) + 1e-4, "batch": SCORES.std(ddof=1) + 1e-4, "none": 1.0}
    np.testing.assert_allclose(group_advantages(SCORES, mode), centred / scale[mode], rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_a_sample_without_a_score_gets_zero_and_leaves_the_others_as_if_it_were_not_there(mode):
    scores = np.array([[1.0, NAN, 0.0, 0.5], [0.2, 0.9, NAN, 0.1]])
    without = np.array([[1.0, 0.0, 0.5], [0.2, 0.9, 0.1]])
    advantages = group_advantages(scores, mode)
    assert (advantages[np.isnan(scores)] == 0).all()
    known = advantages[~np.isnan(scores)].reshape(2, 3)
    np.testing.assert_allclose(known, group_advantages(without, mode), rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", [[0.5] * 4, [NAN] * 4, [NAN, NAN, NAN, 1.0]])
def test_a_group_that_tells_nothing_apart_teaches_nothing(mode, row):
    advantages = group_advantages(np.array([row, [0.0, 1.0, 0.0, 0.0]]), mode)
    assert (advantages[0] == 0).all()
    assert advantages[1, 1] > 0


@pytest.mark.parametrize("mode", MODES)
def test_nothing_known_at_all_is_zero(mode):
    assert (group_advantages(np.full((2, 3), NAN), mode) == 0).all()
