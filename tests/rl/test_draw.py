"""Which problems come when: shuffled, from easy to hard, or by what the policy solves; in proportion; resumable."""

import numpy as np
import pytest

from deltarl.rl.config.sampling import SamplingConfig
from deltarl.rl.data import Draw, batch_indices

SUCCESS = np.array([0.0, 1.0, 0.5, 0.25, 0.75, 0.5, 0.1, 0.9])


def config(**changes) -> SamplingConfig:
    return SamplingConfig(**({"measure_samples": 4} | changes))


def drawn(draw: Draw, steps: int, seed: int = 3) -> np.ndarray:
    return np.array([draw.batch(step, seed) for step in range(steps)])


def test_one_source_shuffled_is_the_order_of_batch_indices():
    draw = Draw([0] * 10, [1.0], 4, SamplingConfig())
    for step in range(12):
        assert draw.batch(step, 7) == batch_indices(10, 4, step, 7)


def test_sources_are_mixed_by_weight_and_each_goes_through_its_epochs():
    sources = [0] * 6 + [1] * 4
    found = drawn(Draw(sources, [3.0, 1.0], 8, SamplingConfig()), 200).ravel()
    assert np.mean(found < 6) == pytest.approx(0.75, abs=0.03)
    for members in (range(6), range(6, 10)):
        order = [i for i in found if i in members]
        for first in range(0, len(order) - len(members), len(members)):
            assert sorted(order[first : first + len(members)]) == list(members)


def test_a_batch_is_a_function_of_step_and_seed_alone():
    for order in ("shuffle", "curriculum"):
        draws = [Draw([0, 1] * 4, [1.0, 2.0], 3, config(order=order, curriculum_steps=5), SUCCESS) for _ in range(2)]
        forward = drawn(draws[0], 9)
        assert [draws[1].batch(step, 3) for step in reversed(range(9))] == forward[::-1].tolist()
        assert (drawn(draws[0], 9, seed=4) != forward).any()


def test_too_hard_and_too_easy_problems_are_left_out():
    draw = Draw([0] * 8, [1.0], 2, config(min_success=0.1, max_success=0.9), SUCCESS)
    assert draw.kept == 6
    assert set(drawn(draw, 30).ravel()) == {2, 3, 4, 5, 6, 7}


def test_a_filter_that_leaves_a_source_empty_is_refused():
    with pytest.raises(ValueError, match="leave none of the problems of training source 2; widen them"):
        Draw([0] * 7 + [1], [1.0, 1.0], 2, config(max_success=0.5), SUCCESS)


def test_a_curriculum_begins_with_the_easiest_and_ends_with_all():
    settings = config(order="curriculum", curriculum_start=0.25, curriculum_steps=100)
    draw = Draw([0] * 8, [1.0], 2, settings, SUCCESS)
    assert set(draw.batch(0, 0)) == {1, 7}
    hardest = [
        max(1 - SUCCESS[drawn_] for step in range(a, a + 25) for drawn_ in draw.batch(step, 0))
        for a in (0, 25, 50, 100)
    ]
    assert hardest == sorted(hardest)
    assert hardest[0] < 0.6
    assert set(np.ravel([draw.batch(step, 0) for step in range(100, 140)])) == set(range(8))


def test_problems_solved_half_of_the_time_are_drawn_most_and_none_is_forgotten():
    draw = Draw([0] * 8, [1.0], 1, config(order="prioritised", uniform_share=0.2), SUCCESS)
    shares = np.bincount(drawn(draw, 4000).ravel(), minlength=8) / 4000
    wanted = SUCCESS * (1 - SUCCESS)
    np.testing.assert_allclose(shares, 0.2 / 8 + 0.8 * wanted / wanted.sum(), atol=0.025)


def test_priorities_follow_what_was_recorded_and_survive_a_resume(tmp_path):
    draw = Draw([0] * 8, [1.0], 2, SamplingConfig(order="prioritised"))
    for _ in range(12):
        draw.record([0, 1, 2, 3, 4], [1.0, 0.0, 1.0, 0.0, 0.5])
    draw.save(tmp_path / "draw.json")
    resumed = Draw([0] * 8, [1.0], 2, SamplingConfig(order="prioritised"))
    assert (drawn(resumed, 40) != drawn(draw, 40)).any()
    resumed.load(tmp_path / "draw.json")
    assert (drawn(resumed, 40) == drawn(draw, 40)).all()
    shares = np.bincount(drawn(draw, 1000).ravel(), minlength=8) / 2000
    assert shares[:4].max() < 0.06 < 0.15 < shares[4:].min()  # those never tried are worth a look too


def test_a_success_rate_is_a_running_mean_that_starts_with_the_first():
    draw = Draw([0] * 8, [1.0], 1, SamplingConfig(order="prioritised"))
    draw.record([0], [1.0])
    assert draw._success[0] == 1
    draw.record([0], [0.0])
    assert draw._success[0] == 0.5
    measured = Draw([0] * 8, [1.0], 1, config(order="prioritised"), SUCCESS)
    measured.record([1], [0.0])
    assert measured._success[1] == 0.5


def test_when_everything_is_solved_all_are_drawn_alike():
    draw = Draw([0] * 4, [1.0], 1, config(order="prioritised"), np.ones(4))
    assert set(drawn(draw, 60).ravel()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"order": "curriculum"}, "order = 'curriculum' must know what the starting model solves"),
        ({"min_success": 0.1}, "min_success and max_success must know"),
        ({"min_success": 0.9, "max_success": 0.1, "measure_samples": 4}, "no problem is left"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        SamplingConfig(**wrong)
