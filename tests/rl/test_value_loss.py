"""The critic's loss against numpy, and its gradient against differences."""

import numpy as np
import pytest
import torch
from objective_cases import by_differences

from deltarl.rl.objectives.value import value_loss

RNG = np.random.default_rng(0)
VALUES, OLD, RETURNS = RNG.normal(size=40), RNG.normal(size=40), RNG.normal(size=40)


def reference(values: np.ndarray, clip: float | None) -> np.ndarray:
    free = 0.5 * (values - RETURNS) ** 2
    if clip is None:
        return free
    return np.maximum(free, 0.5 * (np.clip(values, OLD - clip, OLD + clip) - RETURNS) ** 2)


@pytest.mark.parametrize("clip", [None, 0.2, 2.0])
def test_value_and_gradient_are_those_of_the_reference(clip):
    values = torch.tensor(VALUES, requires_grad=True)
    out = value_loss(values, torch.tensor(OLD), torch.tensor(RETURNS), clip)
    np.testing.assert_allclose(out.loss.detach(), reference(VALUES, clip), atol=1e-12)
    out.loss.sum().backward()
    exact = by_differences(lambda v: reference(v, clip).sum(), VALUES)
    np.testing.assert_allclose(values.grad, exact, atol=1e-6)
    if clip is None:
        assert not out.clipped.any()
    else:
        still = np.abs(exact) < 1e-9
        assert still.any() == bool(out.clipped.any())
        np.testing.assert_array_equal(out.clipped, still)
