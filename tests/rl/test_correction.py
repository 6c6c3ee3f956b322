"""Importance weights from the sampler to the policy an iteration starts with."""

import numpy as np
import pytest
import torch
from objective_cases import LENGTHS, arrays, per_answer, tokens

from deltarl.rl.objectives.config import ObjectiveConfig
from deltarl.rl.objectives.correction import USUAL_BOUNDS, correction_weights

KINDS = sorted(USUAL_BOUNDS)


def reference(kind, a, low, high):
    level, action = kind.split("_")
    x = a["old"] - a["sampler"]
    if level != "token":
        x = per_answer(x, np.sum if level == "sequence" else np.mean)
    raw = np.exp(x)
    outside = (raw < low) | (raw > high)
    return (np.clip(raw, low, high) if action == "truncate" else np.where(outside, 0, raw)), outside


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bounds", [None, (0.8, 1.1)])
def test_weights(kind, bounds):
    a = arrays(spread=0.4)
    low, high = bounds or USUAL_BOUNDS[kind]
    weight, outside = reference(kind, a, low, high)
    x = tokens(a)
    found = correction_weights(x, kind, bounds)
    np.testing.assert_allclose(found.weight.numpy(), weight, rtol=1e-10)
    np.testing.assert_array_equal(found.changed.numpy(), outside)
    assert not found.weight.requires_grad
    if bounds:
        assert outside.any()


@pytest.mark.parametrize("kind", KINDS)
def test_where_sampler_and_learner_agree_the_weight_is_one(kind):
    a = arrays()
    a["sampler"] = a["old"]
    found = correction_weights(tokens(a), kind, None)
    assert (found.weight == 1).all()
    assert not found.changed.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [-800.0, 800.0])
def test_weights_stay_finite_and_within_their_bounds(kind, shift):
    a = arrays()
    a["sampler"] = a["old"] - shift
    found = correction_weights(tokens(a), kind, None)
    assert torch.isfinite(found.weight).all()
    assert float(found.weight.max()) <= USUAL_BOUNDS[kind][1]
    assert found.changed.all() == (shift > 0 or USUAL_BOUNDS[kind][0] > 0)


def test_every_kind_of_the_config_has_usual_bounds():
    kinds = ObjectiveConfig.model_fields["correction"].annotation.__args__
    assert set(kinds) - {"none"} == USUAL_BOUNDS.keys()
    assert all(0 <= low <= 1 <= high for low, high in USUAL_BOUNDS.values())


def test_an_answer_is_weighted_as_one():
    weight = correction_weights(tokens(arrays(spread=0.1)), "sequence_truncate", None).weight
    assert all(len(set(w.tolist())) == 1 for w in weight.split(LENGTHS))
