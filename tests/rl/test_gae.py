"""GAE against its definition as a sum, for answers of several lengths."""

import numpy as np
import pytest

from deltarl.rl.gae import explained_variance, gae

LENGTHS = [4, 1, 9, 2]


def by_definition(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """A_t = Σ_l (γλ)^l δ_{t+l} (Schulman et al. 2015, Eq. 16)."""
    n = len(rewards)
    following = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * following[t] - values[t] for t in range(n)]
    return np.array([sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)])


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.97, 0.0)])
def test_advantages_and_returns_are_those_of_the_definition(gamma, lam, terminal):
    rng = np.random.default_rng(0)
    rewards = [rng.normal(size=n) for n in LENGTHS]
    if terminal:  # what a verifier gives
        rewards = [np.concatenate([np.zeros(n - 1), r[-1:]]) for n, r in zip(LENGTHS, rewards, strict=True)]
    values = [rng.normal(size=n) for n in LENGTHS]
    advantages, returns = gae(rewards, values, gamma, lam)
    for a, r, reward, value in zip(advantages, returns, rewards, values, strict=True):
        expected = by_definition(reward, value, gamma, lam)
        np.testing.assert_allclose(a, expected, atol=1e-12)
        np.testing.assert_allclose(r, expected + value, atol=1e-12)


def test_with_lambda_1_a_return_is_the_score_whatever_the_critic_says():
    scores = [1.0, 0.0, -0.5, 1.0]
    rewards = [np.array([*[0.0] * (n - 1), s]) for n, s in zip(LENGTHS, scores, strict=True)]
    values = [np.random.default_rng(1).normal(size=n) for n in LENGTHS]
    _, returns = gae(rewards, values, 1.0, 1.0)
    for r, s in zip(returns, scores, strict=True):
        np.testing.assert_allclose(r, s, atol=1e-12)


def test_nothing_follows_the_last_token_however_the_answer_ended():
    advantages, _ = gae([np.array([0.0, 0.3])], [np.array([0.1, 5.0])], 1.0, 0.0)
    np.testing.assert_allclose(advantages[0], [4.9, 0.3 - 5.0])


def test_no_answers_are_no_advantages():
    assert gae([], [], 1.0, 1.0) == ([], [])


def test_explained_variance():
    returns = np.array([0.0, 1.0, 1.0, 0.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(np.full(4, 0.7), returns) == 0
    assert explained_variance(returns / 2, returns) == pytest.approx(0.75)
    assert explained_variance(-returns, returns) == pytest.approx(-3)
    assert np.isnan(explained_variance(returns, np.ones(4)))
