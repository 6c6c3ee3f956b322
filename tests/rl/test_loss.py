"""The GRPO objective against a reference that is written token by token, and its gradient against differences."""

import math

import numpy as np
import pytest
import torch

from deltarl.rl.loss import grpo_loss, k3_kl

SETTINGS = {"epsilon": 0.2, "epsilon_high": 0.5, "beta": 0.0}


def tokens(n: int = 400, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Log-probabilities whose ratios reach far beyond both clip bounds, and advantages of both signs and zero."""
    rng = np.random.default_rng(seed)
    new = np.log(rng.uniform(0.01, 1, n))
    old = new - rng.normal(0, 0.5, n)
    advantages = rng.normal(0, 1, n) * (rng.random(n) > 0.1)
    return new, old, advantages, new - rng.normal(0, 0.3, n)


def reference(new, old, advantages, ref, epsilon, epsilon_high, beta):
    """GRPO, arXiv 2402.03300 Eq. 3, one token after the other."""
    rows = []
    for p, q, a, r in zip(new, old, advantages, ref, strict=True):
        ratio = math.exp(p - q)
        low, high = 1 - epsilon, 1 + epsilon_high
        surrogate = min(ratio * a, min(max(ratio, low), high) * a)
        kl = math.exp(r - p) - 1 - (r - p)
        rows.append((-surrogate + beta * kl, ratio, ratio < low and a < 0, ratio > high and a > 0, kl))
    return [np.array(column) for column in zip(*rows, strict=True)]


def run(*arrays, **settings):
    new, old, advantages, ref = (torch.tensor(x) for x in arrays)
    new.requires_grad_()
    return new, grpo_loss(new, old, advantages, ref, **(SETTINGS | settings))


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_every_token_has_the_loss_and_the_clip_marks_of_the_reference(beta):
    arrays = tokens()
    _, out = run(*arrays, beta=beta)
    loss, ratio, low, high, kl = reference(*arrays, **(SETTINGS | {"beta": beta}))
    np.testing.assert_allclose(out.loss.detach().numpy(), loss, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(out.ratio.numpy(), ratio, rtol=1e-12)
    assert low.sum() > 5
    assert high.sum() > 5
    np.testing.assert_array_equal(out.clipped_low.numpy(), low)
    np.testing.assert_array_equal(out.clipped_high.numpy(), high)
    if beta:
        np.testing.assert_allclose(out.kl_ref.numpy(), kl, rtol=1e-9, atol=1e-12)
    else:
        assert out.kl_ref is None


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_gradient_is_that_of_the_reference(beta):
    arrays = tokens()
    new, out = run(*arrays, beta=beta)
    out.loss.sum().backward()
    settings, step = SETTINGS | {"beta": beta}, 1e-6
    up = reference(arrays[0] + step, *arrays[1:], **settings)[0]
    down = reference(arrays[0] - step, *arrays[1:], **settings)[0]
    np.testing.assert_allclose(new.grad.numpy(), (up - down) / (2 * step), rtol=1e-5, atol=1e-7)


def test_a_clipped_token_teaches_nothing_and_the_upper_bound_is_its_own():
    ratios = torch.tensor([0.75, 0.85, 1.4, 1.6])  # epsilon 0.2, epsilon_high 0.5
    new = ratios.double().log().requires_grad_()
    for sign, dead in ((1.0, [False, False, False, True]), (-1.0, [True, False, False, False])):
        out = grpo_loss(new, torch.zeros(4).double(), torch.full((4,), sign).double(), **SETTINGS)
        (grad,) = torch.autograd.grad(out.loss.sum(), new)
        assert (grad == 0).tolist() == dead
        assert (out.clipped_high if sign > 0 else out.clipped_low).tolist() == dead


def test_on_policy_the_loss_is_minus_the_advantage_and_nothing_is_clipped():
    new, _, advantages, _ = tokens()
    _, out = run(new, new, advantages, new)
    np.testing.assert_allclose(out.loss.detach().numpy(), -advantages, rtol=1e-12)
    assert (out.ratio == 1).all()
    assert (out.kl_old == 0).all()
    assert not out.clipped_low.any()
    assert not out.clipped_high.any()


def test_k3_estimates_the_divergence_and_is_never_negative():
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    estimate = k3_kl(p.log(), q.log())
    assert (estimate >= 0).all()
    torch.testing.assert_close((p * estimate).sum(), (p * (p / q).log()).sum())


def test_kl_old_estimates_the_divergence_of_the_sampling_policy():
    """Tokens come from the old policy, so it is KL(old ‖ new) that their k3 estimates."""
    old, new = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    out = grpo_loss(new.log(), old.log(), torch.zeros(3).double(), **SETTINGS)
    torch.testing.assert_close((old * out.kl_old).sum(), (old * (old / new).log()).sum())
