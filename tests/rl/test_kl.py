"""Estimates of the KL to the reference: their value, their gradient, and the weight that follows them."""

import numpy as np
import pytest
import torch
from objective_cases import arrays

from deltarl.rl.objectives.kl import adapted_beta, k3_kl, kl_estimate

KINDS = ["k1", "k2", "k3", "k3_straight_through", "unbiased"]


def reference(kind, p, ref, sampler):
    d = p - ref
    k3 = np.exp(-d) - 1 + d
    return {"k1": d, "k2": d**2 / 2, "k3_straight_through": k3, "unbiased": np.exp(p - sampler) * k3}.get(kind, k3)


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient(kind):
    a = arrays()
    p = torch.tensor(a["new"], requires_grad=True)
    estimate = kl_estimate(kind, p, torch.tensor(a["ref"]), torch.tensor(a["sampler"]))
    np.testing.assert_allclose(estimate.detach().numpy(), reference(kind, a["new"], a["ref"], a["sampler"]), rtol=1e-9)
    estimate.sum().backward()
    learned_from, step = "k2" if kind == "k3_straight_through" else kind, 1e-6
    up, down = (reference(learned_from, a["new"] + s, a["ref"], a["sampler"]) for s in (step, -step))
    np.testing.assert_allclose(p.grad.numpy(), (up - down) / (2 * step), rtol=1e-5, atol=1e-7)


P, Q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()


def exact_kl(logits: torch.Tensor) -> torch.Tensor:
    p = torch.softmax(logits, 0)
    return (p * (p / Q).log()).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_expected_value_over_samples_of_the_policy(kind):
    estimate = kl_estimate(kind, P.log(), Q.log(), P.log())
    expected = (P * estimate).sum()
    if kind != "k2":  # the only one that is biased
        torch.testing.assert_close(expected, exact_kl(P.log()))
    if kind != "k1":
        assert (estimate >= 0).all()


@pytest.mark.parametrize(("kind", "right"), [("k1", False), ("k2", True), ("k3", False), ("k3_straight_through", True)])
def test_whose_expected_gradient_is_that_of_the_kl(kind, right):
    logits = P.log().requires_grad_()
    (exact,) = torch.autograd.grad(exact_kl(logits), logits)
    logprobs = torch.log_softmax(logits, 0)
    estimate = kl_estimate(kind, logprobs, Q.log(), logprobs.detach())
    (found,) = torch.autograd.grad((P * estimate).sum(), logits)  # P: how often each token is sampled, held constant
    assert torch.allclose(found, exact) == right
    if kind == "k1":
        torch.testing.assert_close(found, torch.zeros(3).double())


def test_the_unbiased_one_is_right_also_on_samples_of_another_policy():
    sampler, logits = torch.tensor([0.1, 0.6, 0.3]).double(), P.log().requires_grad_()
    (exact,) = torch.autograd.grad(exact_kl(logits), logits)
    logprobs = torch.log_softmax(logits, 0)
    expected = (sampler * kl_estimate("unbiased", logprobs, Q.log(), sampler.log())).sum()
    torch.testing.assert_close(expected.detach(), exact_kl(P.log()))
    torch.testing.assert_close(torch.autograd.grad(expected, logits)[0], exact)


def test_k3_estimates_the_divergence_and_is_never_negative():
    estimate = k3_kl(P.log(), Q.log())
    assert (estimate >= 0).all()
    torch.testing.assert_close((P * estimate).sum(), (P * (P / Q).log()).sum())


def test_beta_grows_while_the_kl_is_above_its_target_and_shrinks_below():
    assert adapted_beta(0.1, kl=0.02, target=0.02, horizon=10) == 0.1
    assert adapted_beta(0.1, kl=0.022, target=0.02, horizon=10) == pytest.approx(0.1 * 1.01)
    assert adapted_beta(0.1, kl=5.0, target=0.02, horizon=10) == pytest.approx(0.1 * 1.02)  # held at 20 %
    assert adapted_beta(0.1, kl=0.0, target=0.02, horizon=10) == pytest.approx(0.1 * 0.98)


def test_beta_finds_the_weight_that_keeps_the_kl_at_its_target():
    beta = 1e-3
    for _ in range(400):
        beta = adapted_beta(beta, kl=0.001 / beta, target=0.05, horizon=5)
    assert 0.001 / beta == pytest.approx(0.05, rel=0.05)
