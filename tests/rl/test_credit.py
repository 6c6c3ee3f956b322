"""From scores to the advantages of tokens, with a learner that says what the test wants."""

from dataclasses import replace

import numpy as np
import pytest

from deltarl.reward.rewards import ScoreReport
from deltarl.rl.config import LearnerConfig
from deltarl.rl.config.critic import CriticConfig
from deltarl.rl.credit import assign_credit
from deltarl.rl.episodes import Episodes
from deltarl.rl.gae import explained_variance, gae
from deltarl.rl.presets import PRESETS
from deltarl.rollout.outputs import CompletionOutput, RequestOutput

LENGTHS = [[3, 1], [4, 2], [5, 6]]
SCORES = [1.0, 0.0, None, 1.0, 0.0, 0.5]


@pytest.fixture
def episodes() -> Episodes:
    """Three problems of two answers, one of them without a score; a token is its place."""
    groups = [
        RequestOutput(
            "",
            [7, i],
            [
                CompletionOutput(j, [10 * i + j] * n, [-0.5] * n, [0.0] * n, [0] * n, "length")
                for j, n in enumerate(lengths)
            ],
        )
        for i, lengths in enumerate(LENGTHS)
    ]
    return Episodes([], groups, [""] * 6, ScoreReport(SCORES, None, {}))


class Learner:
    """Two ranks; values and KL are functions of a token's id and place, so that a mixed-up answer shows."""

    def scatter(self, method, args):
        return [[self.of(method, s.completion_ids) for s in samples] for (samples,) in args]

    @staticmethod
    def of(method, ids):
        scale = {"values": 0.01, "token_kl": 0.001}[method]
        return [scale * (token + place) for place, token in enumerate(ids)]


def ppo(**changes) -> LearnerConfig:
    critic = CriticConfig(gamma=0.9, lam=0.8)
    return LearnerConfig(**(PRESETS["ppo"]["learner"] | {"num_ranks": 2, "critic": critic} | changes))


def expected(beta: float):
    """Advantages and returns of the answers with a score, problem by problem."""
    ids = [[10 * i + j] * n for i, lengths in enumerate(LENGTHS) for j, n in enumerate(lengths)]
    known = [(x, s) for x, s in zip(ids, SCORES, strict=True) if s is not None]
    rewards = [-beta * np.array(Learner.of("token_kl", x)) for x, _ in known]
    for r, (_, s) in zip(rewards, known, strict=True):
        r[-1] += s
    values = [np.array(Learner.of("values", x)) for x, _ in known]
    return *gae(rewards, values, 0.9, 0.8), values


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_each_token_gets_its_advantage_value_and_return(episodes, beta):
    samples, metrics = assign_credit(episodes, range(3), ppo(scale_rewards="none", beta=beta), beta, Learner())
    advantages, returns, values = expected(beta)
    assert [len(s.completion_ids) for s in samples] == [3, 1, 2, 5, 6]
    for s, a, r, v in zip(samples, advantages, returns, values, strict=True):
        np.testing.assert_allclose(s.advantages, a)
        np.testing.assert_allclose(s.returns, r)
        np.testing.assert_allclose(s.values, v)
    flat = np.concatenate(values), np.concatenate(returns)
    assert metrics["value/explained_variance"] == pytest.approx(explained_variance(*flat))
    assert metrics["value/mean"] == pytest.approx(flat[0].mean())
    assert metrics["value/return_mean"] == pytest.approx(flat[1].mean())
    assert ("kl/ref" in metrics) == (beta > 0)


def test_whitening_is_over_the_tokens_of_the_batch_and_leaves_the_returns(episodes):
    samples, _ = assign_credit(episodes, range(3), ppo(), 0.0, Learner())
    advantages, returns, _ = expected(0.0)
    flat = np.concatenate([s.advantages for s in samples])
    assert flat.mean() == pytest.approx(0, abs=1e-12)
    assert flat.std(ddof=1) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(np.corrcoef(flat, np.concatenate(advantages))[0, 1], 1)
    np.testing.assert_allclose(np.concatenate([s.returns for s in samples]), np.concatenate(returns))


def test_only_the_chosen_problems_are_learned_from(episodes):
    samples, _ = assign_credit(episodes, [2, 0], ppo(), 0.0, Learner())
    assert [s.completion_ids[0] for s in samples] == [20, 21, 0, 1]


def test_without_a_critic_the_tokens_of_an_answer_share_its_advantage(episodes):
    samples, metrics = assign_credit(episodes, [0, 2], LearnerConfig(), 0.0, Learner())
    assert metrics == {}
    assert [len(set(s.advantages)) for s in samples] == [1] * 4
    assert [np.sign(s.advantages[0]) for s in samples] == [1, -1, -1, 1]
    assert samples[0].values is samples[0].returns is None


@pytest.mark.parametrize("scale", ["none", "whiten"])
def test_without_any_score_there_is_nothing_to_learn_from(episodes, scale):
    unscored = replace(episodes, report=ScoreReport([None] * 6, None, {}))
    assert assign_credit(unscored, [0, 1, 2], ppo(scale_rewards=scale), 0.0, Learner()) == ([], {})
