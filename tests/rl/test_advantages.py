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


@pytest.mark.parametrize("mode", MODES)
def test_leave_one_out_compares_a_sample_with_the_others(mode):
    """RLOO, arXiv 2402.14740: A_i = s_i − mean of s_j, j ≠ i."""
    expected = np.array([[s - np.mean(np.delete(row, i)) for i, s in enumerate(row)] for row in SCORES])
    scale = {"group": SCORES.std(1, ddof=1, keepdims=True) + 1e-4, "batch": SCORES.std(ddof=1) + 1e-4, "none": 1.0}
    found = group_advantages(SCORES, mode, baseline="leave_one_out")
    np.testing.assert_allclose(found, expected / scale[mode], rtol=1e-12, atol=1e-15)


def test_leave_one_out_of_samples_without_a_score():
    scores = np.array([[1.0, NAN, 0.0, 0.5], [NAN, NAN, 0.7, NAN]])
    found = group_advantages(scores, "none", baseline="leave_one_out")
    np.testing.assert_allclose(found, [[0.75, 0, -0.75, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("baseline", ["group", "none"])
def test_whitened_advantages_have_mean_0_and_deviation_1_over_the_batch(baseline):
    """REINFORCE++, arXiv 2501.03262: without a baseline, and with that of the group."""
    left = SCORES - (SCORES.mean(1, keepdims=True) if baseline == "group" else 0)
    found = group_advantages(SCORES, "whiten", baseline=baseline)
    np.testing.assert_allclose(found, (left - left.mean()) / (left.std(ddof=1) + 1e-4), rtol=1e-12, atol=1e-15)
    scores = np.array([[1.0, NAN, 0.0, 0.5], [0.2, 0.9, NAN, 0.1]])
    found = group_advantages(scores, "whiten", baseline=baseline)
    known = found[~np.isnan(scores)]
    assert known.mean() == pytest.approx(0, abs=1e-12)
    assert known.std(ddof=1) == pytest.approx(1, abs=1e-3)
    assert (found[np.isnan(scores)] == 0).all()


def test_whitening_one_sample_or_none_is_zero():
    for row in ([NAN, NAN], [NAN, 1.0]):
        assert (group_advantages(np.array([row]), "whiten", baseline="none") == 0).all()


def test_a_single_sample_a_problem_learns_from_the_others_of_the_batch():
    found = group_advantages(np.array([[1.0], [0.0], [0.0]]), "whiten", baseline="none")
    assert found[0] > 0 > found[1] == found[2]
