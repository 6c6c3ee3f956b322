"""Every surrogate loss against a reference in numpy, and its gradient against differences of that reference."""

from pathlib import Path

import numpy as np
import pytest
import torch
from objective_cases import LENGTHS, arrays, by_differences, per_answer, tokens

from deltarl.rl.loss import surrogate
from deltarl.rl.objectives.config import LOSSES, ObjectiveConfig
from deltarl.rl.objectives.ratio import importance_ratio

LEVELS = ["token", "sequence", "product"]
DOCUMENT = Path(__file__).parents[2] / "docs" / "OBJECTIVES.md"

# Wide enough ranges that tokens fall below, within and above them, at every level.
RANGES = {
    "token": {"epsilon": 0.2, "epsilon_high": 0.5},
    "sequence": {"epsilon": 0.04, "epsilon_high": 0.05},
    "product": {"epsilon": 0.5, "epsilon_high": 0.9},
}


def ratio(new: np.ndarray, old: np.ndarray, level: str) -> np.ndarray:
    x = new - old
    if level == "token":
        return np.exp(x)
    return np.exp(per_answer(x, np.mean if level == "sequence" else np.sum))


def clip(new, a, config, level):
    """PPO, arXiv 1707.06347 Eq. 7, one token after the other; dual clip, 1912.09729."""
    rows = []
    for r, advantage in zip(ratio(new, a["old"], level), a["advantages"], strict=True):
        value = min(r * advantage, min(max(r, 1 - config.epsilon), 1 + config.epsilon_high) * advantage)
        if config.dual_clip and advantage < 0:
            value = max(value, config.dual_clip * advantage)
        rows.append(-value)
    return np.array(rows)


def cispo(new, a, config, level):
    """arXiv 2506.13585 Eq. 4: the weight is that of the tested policy, whatever `new` is."""
    weight = np.clip(ratio(a["new"], a["old"], level), 1 - config.epsilon, 1 + config.epsilon_high)
    return -weight * a["advantages"] * new


def mirror_descent(new, a, config, level):
    """arXiv 2501.12599, section 2.3.2: (A − τ ℓ)² / 2τ, less what does not depend on the policy."""
    distance = per_answer(new - a["old"], np.sum)
    return ((a["advantages"] - config.tau * distance) ** 2 - a["advantages"] ** 2) / (2 * config.tau)


REFERENCES = {"clip": clip, "cispo": cispo, "mirror_descent": mirror_descent}
CASES = [
    *(("clip", level, {}) for level in LEVELS),
    *(("clip", level, {"dual_clip": 1.05 if level == "sequence" else 1.5}) for level in LEVELS),
    *(("cispo", level, {}) for level in LEVELS),
    ("cispo", "token", {"epsilon": 1.0}),
    ("mirror_descent", "token", {"tau": 0.3}),
    ("mirror_descent", "token", {"tau": 0.01}),
]


def configured(name, level, switches) -> ObjectiveConfig:
    return ObjectiveConfig(**({"loss_type": name, "importance_sampling_level": level} | RANGES[level] | switches))


def test_every_loss_has_a_reference_here_and_a_line_in_the_document():
    assert set(LOSSES) == REFERENCES.keys()
    text = DOCUMENT.read_text()
    for name in LOSSES:
        assert f"`{name}`" in text
        assert "arXiv" in surrogate(name).__doc__


@pytest.mark.parametrize(("name", "level", "switches"), CASES)
def test_a_loss_and_its_gradient_are_those_of_the_reference(name, level, switches):
    config, a = configured(name, level, switches), arrays()
    x = tokens(a)
    out = surrogate(name)(x, config)
    reference = REFERENCES[name]
    np.testing.assert_allclose(out.loss.detach().numpy(), reference(a["new"], a, config, level), rtol=1e-10, atol=1e-12)
    weights = np.random.default_rng(1).uniform(0.1, 1, sum(LENGTHS))  # so that no sum hides what a token does
    (out.loss * torch.tensor(weights)).sum().backward()
    expected = by_differences(lambda new: float(weights @ reference(new, a, config, level)), a["new"])
    np.testing.assert_allclose(x.logprobs.grad.numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["clip", "cispo"])
def test_clip_marks(name, level):
    config, a = configured(name, level, {}), arrays()
    out = surrogate(name)(tokens(a), config)
    r = ratio(a["new"], a["old"], level)
    np.testing.assert_allclose(out.ratio.numpy(), r, rtol=1e-10)
    low, high = r < 1 - config.epsilon, r > 1 + config.epsilon_high
    assert low.any()
    assert high.any()
    if name == "clip":
        low, high = low & (a["advantages"] < 0), high & (a["advantages"] > 0)
    np.testing.assert_array_equal(out.clipped_low.numpy(), low)
    np.testing.assert_array_equal(out.clipped_high.numpy(), high)


@pytest.mark.parametrize(("name", "level", "switches"), CASES)
def test_on_policy_every_loss_has_the_gradient_of_reinforce(name, level, switches):
    """−A ∇log π, of the token or of its answer's mean or sum; nothing is clipped."""
    config, a = configured(name, level, switches), arrays()
    a["old"] = a["new"]
    x = tokens(a)
    out = surrogate(name)(x, config)
    assert not out.clipped_low.any()
    assert not out.clipped_high.any()
    assert (out.ratio == 1).all()
    out.loss.sum().backward()
    share = {"token": 1, "sequence": 1, "product": np.repeat(LENGTHS, LENGTHS)}[level]
    if name == "mirror_descent":
        share = np.repeat(LENGTHS, LENGTHS)
    elif name == "cispo":
        share = 1  # its weight is held constant, whatever it is of
    np.testing.assert_allclose(x.logprobs.grad.numpy(), -a["advantages"] * share, rtol=1e-10)


def test_a_clipped_token_teaches_nothing_and_the_upper_bound_is_its_own():
    a = arrays()
    n = sum(LENGTHS)
    ratios = np.resize([0.75, 0.85, 1.4, 1.6], n)  # epsilon 0.2, epsilon_high 0.5
    a["old"] = a["new"] - np.log(ratios)
    for sign in (1.0, -1.0):
        a["advantages"] = np.full(n, sign)
        x = tokens(a)
        out = surrogate("clip")(x, configured("clip", "token", {}))
        (grad,) = torch.autograd.grad(out.loss.sum(), x.logprobs)
        dead = np.isclose(ratios, 1.6) if sign > 0 else np.isclose(ratios, 0.75)
        np.testing.assert_array_equal(grad.numpy() == 0, dead)


def test_dual_clip_bounds_what_the_clip_does_not():
    a = arrays()
    n = sum(LENGTHS)
    a["old"], a["advantages"] = a["new"] - 10, np.full(n, -1.0)  # a ratio of 22026 on a token that was bad
    plain = surrogate("clip")(tokens(a), configured("clip", "token", {}))
    x = tokens(a)
    bounded = surrogate("clip")(x, configured("clip", "token", {"dual_clip": 3.0}))
    assert plain.loss.min() > 2e4
    assert (bounded.loss == 3).all()
    bounded.loss.sum().backward()
    assert (x.logprobs.grad == 0).all()


def test_a_ratio_of_a_whole_answer_does_not_overflow():
    a = arrays()
    a["old"] = a["new"] - 500
    assert torch.isfinite(importance_ratio(tokens(a), "product")).all()


def test_mirror_descent_pulls_back_what_has_gone_beyond_its_optimum():
    """The optimum is ℓ = A / τ."""
    a, config = arrays(), ObjectiveConfig(loss_type="mirror_descent", tau=0.5)
    for distance, sign in ((1.0, -1), (3.0, 1)):  # A / τ = 2
        a["old"] = a["new"] - np.repeat(distance / np.array(LENGTHS), LENGTHS)
        a["advantages"] = np.ones(sum(LENGTHS))
        x = tokens(a)
        surrogate("mirror_descent")(x, config).loss.sum().backward()
        assert (torch.sign(x.logprobs.grad) == sign).all()


def test_an_empty_answer_is_harmless():
    a = {name: x[:5] for name, x in arrays().items()}
    for name, level, switches in CASES:
        x = tokens(a)
        x = type(x)(x.logprobs, x.old_logprobs, x.sampler_logprobs, x.advantages, torch.tensor([0, 2, 0, 3]))
        surrogate(name)(x, configured(name, level, switches)).loss.sum().backward()
        assert torch.isfinite(x.logprobs.grad).all()
