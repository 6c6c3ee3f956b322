"""From the scores of answers to the advantages of their tokens."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deltarl.rl.advantages import group_advantages, whitened
from deltarl.rl.batch import TrainSample
from deltarl.rl.config import LearnerConfig
from deltarl.rl.episodes import Episodes
from deltarl.rl.gae import explained_variance, gae
from deltarl.rl.stages import Ranks

Credited = tuple[list[TrainSample], dict[str, float]]
"""Answers with their advantages, and metrics."""


def assign_credit(
    episodes: Episodes, prompts: Sequence[int], config: LearnerConfig, beta: float, learner: Ranks
) -> Credited:
    """The answers to these prompts of the episodes that have a score, with advantages.

    Args:
        beta: weight of the KL to the reference model, which goes off the reward with `config.kl_in` "reward".
    """
    scores = episodes.scores[prompts]
    # Without advantages yet: what the learner is asked about them does not depend on any.
    answers = episodes.train_samples(np.zeros_like(scores), prompts)
    kl, metrics = None, dict[str, float]()
    if beta and config.kl_in == "reward":
        kl = [np.array(tokens) for tokens in _ask(learner, "token_kl", answers, config.num_ranks)]
        metrics = _kl_metrics(kl, beta)
    if config.baseline == "critic":
        values = _ask(learner, "values", answers, config.num_ranks)
        samples, of_critic = _with_critic(answers, scores[~np.isnan(scores)], kl, values, config, beta)
        return samples, metrics | of_critic
    if kl is not None:
        scores[~np.isnan(scores)] -= beta * np.array([tokens.sum() for tokens in kl])
    advantages = group_advantages(scores, config.scale_rewards, baseline=config.baseline)
    return episodes.train_samples(advantages, prompts), metrics


def _with_critic(
    answers: list[TrainSample],
    scores: np.ndarray,
    kl: list[np.ndarray] | None,
    values: list[list[float]],
    config: LearnerConfig,
    beta: float,
) -> Credited:
    """Each token is rewarded with minus its KL, the last one with the answer's score too."""
    if not answers:
        return [], {}
    rewards = [np.zeros(len(v)) if kl is None else -beta * kl[i] for i, v in enumerate(values)]
    for r, score in zip(rewards, scores, strict=True):
        r[-1:] += score
    advantages, returns = gae(rewards, [np.array(v) for v in values], config.critic.gamma, config.critic.lam)
    flat_values, flat_returns = _flat(values), _flat(returns)
    metrics = {
        "value/explained_variance": explained_variance(flat_values, flat_returns),
        "value/mean": float(flat_values.mean()) if len(flat_values) else float("nan"),
        "value/return_mean": float(flat_returns.mean()) if len(flat_returns) else float("nan"),
    }
    if config.scale_rewards == "whiten":
        ends = np.cumsum([len(a) for a in advantages])[:-1]
        advantages = np.split(whitened(_flat(advantages)), ends)
    samples = [
        replace(s, advantages=a.tolist(), values=v, returns=r.tolist())
        for s, a, v, r in zip(answers, advantages, values, returns, strict=True)
    ]
    return samples, metrics


def _ask(learner: Ranks, method: str, answers: list[TrainSample], num_ranks: int) -> list[list[float]]:
    """What the ranks together say of each token of each answer."""
    found: list[list[float]] = [[]] * len(answers)
    shares = learner.scatter(method, [(answers[rank::num_ranks],) for rank in range(num_ranks)])
    for rank, share in enumerate(shares):
        found[rank::num_ranks] = share
    return found


def _kl_metrics(kl: list[np.ndarray], beta: float) -> dict[str, float]:
    total, tokens = sum(float(x.sum()) for x in kl), sum(len(x) for x in kl)
    return {"kl/ref": total / max(1, tokens), "kl/penalty": beta * total / max(1, len(kl))}


def _flat(parts: Sequence[Sequence[float] | np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(p, dtype=np.float64) for p in parts]) if len(parts) else np.zeros(0)
