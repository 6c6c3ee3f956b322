"""The objective put together: against a reference that is written token by token, and its gradient."""

import math

import numpy as np
import pytest
import torch
from objective_cases import arrays, tokens

from deltarl.rl.loss import surrogate, token_loss
from deltarl.rl.objectives.config import ObjectiveConfig
from deltarl.rl.objectives.tokens import Tokens

EPSILON = {"epsilon": 0.2, "epsilon_high": 0.5}


def reference(new, a, beta, correction):
    """GRPO, arXiv 2402.03300 Eq. 3, with TIS, one token after the other."""
    rows = []
    for p, q, s, r, advantage in zip(new, a["old"], a["sampler"], a["ref"], a["advantages"], strict=True):
        ratio = math.exp(p - q)
        value = -min(ratio * advantage, min(max(ratio, 0.8), 1.5) * advantage)
        if correction == "token_truncate":
            value *= min(math.exp(q - s), 2.0)
        rows.append(value + beta * (math.exp(r - p) - 1 - (r - p)))
    return np.array(rows)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("correction", ["none", "token_truncate"])
def test_loss_and_gradient(beta, correction):
    a, config = arrays(spread=0.7), ObjectiveConfig(**EPSILON, correction=correction)
    x = tokens(a)
    out = token_loss(x, config, torch.tensor(a["ref"]) if beta else None, beta)
    np.testing.assert_allclose(out.loss.detach().numpy(), reference(a["new"], a, beta, correction), rtol=1e-9)
    out.loss.sum().backward()
    up, down = (reference(a["new"] + s, a, beta, correction) for s in (1e-6, -1e-6))
    np.testing.assert_allclose(x.logprobs.grad.numpy(), (up - down) / 2e-6, rtol=1e-5, atol=1e-7)
    assert (out.kl_ref is None) == (beta == 0)
    assert (out.corrected is None) == (correction == "none")
    if correction != "none":
        assert 0 < int(out.corrected.sum()) < len(a["new"])


def test_the_unbiased_kl_is_weighted_from_the_policy_that_sampled():
    a = arrays()
    out = token_loss(tokens(a), ObjectiveConfig(kl_estimator="unbiased"), torch.tensor(a["ref"]), 0.3)
    d = a["new"] - a["ref"]
    np.testing.assert_allclose(out.kl_ref.numpy(), np.exp(a["new"] - a["sampler"]) * (np.exp(-d) - 1 + d), rtol=1e-9)


def test_on_policy_the_loss_is_minus_the_advantage_and_nothing_is_clipped():
    a = arrays()
    a["old"] = a["new"]
    out = token_loss(tokens(a), ObjectiveConfig())
    np.testing.assert_allclose(out.loss.detach().numpy(), -a["advantages"], rtol=1e-12)
    assert (out.ratio == 1).all()
    assert (out.kl_old == 0).all()
    assert not out.clipped_low.any()
    assert not out.clipped_high.any()


def test_kl_old_estimates_the_divergence_of_the_old_policy():
    """Tokens come from the old policy, so it is KL(old ‖ new) that their k3 estimates."""
    old, new = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    x = Tokens(new.log(), old.log(), old.log(), torch.zeros(3).double(), torch.tensor([3]))
    out = token_loss(x, ObjectiveConfig())
    torch.testing.assert_close((old * out.kl_old).sum(), (old * (old / new).log()).sum())


def test_a_loss_that_is_not_there_is_refused_by_name():
    with pytest.raises(ModuleNotFoundError, match=r"losses\.mine"):
        surrogate("mine")
