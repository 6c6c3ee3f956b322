"""The critic beside the policy: it learns the returns, keeps off the policy, warms up alone, reloads exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deltarl.model.checkpoint import load_model
from deltarl.rl.batch import TrainSample, split_batch
from deltarl.rl.config import LearnerConfig
from deltarl.rl.config.critic import CriticConfig
from deltarl.rl.learner import Learner
from deltarl.rl.presets import PRESETS
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams

TRUNKS = ["own", "shared"]


@pytest.fixture(scope="module")
def answers(policy_folder) -> list[TrainSample]:
    """24 answers of uneven length, with random advantages and returns that depend on the last token."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 24, n).tolist() for n in (4, 9, 17, 6)]
    params = SamplingParams(n=6, max_tokens=40, stop_token_ids=(2,), seed=5)
    groups = Engine(load_model(policy_folder)).generate(prompts, params)
    found = []
    for group in groups:
        for t in group.outputs:
            n = len(t.token_ids)
            s = TrainSample(group.prompt_token_ids, t.token_ids, t.logprobs, rng.normal(size=n).tolist())
            found.append(replace(s, values=[0.0] * n, returns=[1.0 if i == n - 1 else 0.2 for i in range(n)]))
    return found


@pytest.fixture
def learner(policy_folder):
    def make(critic: dict | None = None, **changes) -> Learner:
        critic_config = CriticConfig(**({"learning_rate": 1e-2, "value_clip": None} | (critic or {})))
        settings = PRESETS["ppo"]["learner"] | {"warmup_steps": 0, "learning_rate": 1e-3, "critic": critic_config}
        return Learner(LearnerConfig(**(settings | changes)), str(policy_folder), 10, 1.0)

    return make


def update(one: Learner, samples, num_minibatches: int = 1) -> dict[str, float]:
    return one.update(split_batch(samples, 1, num_minibatches)[0])


def asked(one: Learner, samples) -> list[TrainSample]:
    """The answers with what the critic says of them now."""
    return [replace(s, values=v) for s, v in zip(samples, one.values(samples), strict=True)]


def policy_of(one: Learner) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(x) for name, x in one.weights().arrays.items()}


def critic_of(one: Learner) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in one.critic.module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_critic_starts_at_zero_and_learns_the_returns(learner, answers, trunk):
    one = learner({"trunk": trunk, "learning_rate": 3e-2 if trunk == "shared" else 1e-2})
    assert all(v == 0 for values in one.values(answers) for v in values)
    losses = [update(one, asked(one, answers))["loss/value"] for _ in range(12)]
    mean = np.mean([r**2 / 2 for s in answers for r in s.returns])
    assert losses[0] == pytest.approx(mean, rel=1e-5)  # half the squared error, per token of the batch
    assert losses[-1] < losses[0] / 2


def test_more_epochs_teach_the_critic_more_and_the_policy_the_same(learner, answers):
    once, often = learner(), learner({"epochs": 5})
    for one in (once, often):
        update(one, answers, 2)
    returns = [np.array(s.returns) for s in answers]
    errors = [
        np.mean([((np.array(v) - r) ** 2).mean() for v, r in zip(one.values(answers), returns, strict=True)])
        for one in (once, often)
    ]
    assert errors[1] < 0.8 * errors[0]
    assert same(policy_of(once), policy_of(often))
    assert often.critic.optimizer.optimizer.state_dict()["state"][0]["step"] == 10


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_values_are_those_before_each_token(learner, answers, trunk):
    one = learner({"trunk": trunk})
    for _ in range(3):
        update(one, asked(one, answers))
    values = one.values(answers[:1])[0]
    last = answers[0].completion_ids[-1]
    changed = replace(answers[0], completion_ids=[*answers[0].completion_ids[:-1], (last + 1) % 20])
    assert one.values([changed])[0] == values, "no value may have seen its token"
    other = replace(answers[0], prompt_ids=[5, *answers[0].prompt_ids[1:]])
    assert one.values([other])[0][0] != values[0]


def test_a_critic_of_its_own_trunk_leaves_the_policy_alone(learner, answers, policy_folder):
    with_critic = learner()
    plain = Learner(
        LearnerConfig(epsilon=0.2, epsilon_high=0.2, warmup_steps=0, learning_rate=1e-3), str(policy_folder), 10, 1.0
    )
    for one in (with_critic, plain):
        update(one, answers)
        update(one, answers)
    assert with_critic.weights().checksum == plain.weights().checksum


def test_a_shared_trunk_follows_the_critic_by_its_coefficient(learner, answers):
    ends = []
    for coefficient in (1e-9, 1.0):
        one = learner({"trunk": "shared", "value_coef": coefficient}, max_grad_norm=1e9)
        update(one, answers)  # the head is zero: nothing comes through yet
        update(one, asked(one, answers))
        ends.append(policy_of(one))
    assert not same(*ends)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_policy_waits_until_the_critic_is_warm(learner, answers, trunk):
    one = learner({"trunk": trunk, "warmup_updates": 2})
    start = policy_of(one)
    for step in range(3):
        critic = critic_of(one)
        metrics = update(one, asked(one, answers), 2)
        assert not same(critic_of(one), critic)
        assert same(policy_of(one), start) == (step < 2)
        assert metrics["optim/lr"] == 1e-3  # its schedule waits too
    assert one.scheduler.last_epoch == 2


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_gradient_does_not_depend_on_the_micro_batches(learner, answers, trunk, monkeypatch):
    total = sum(map(len, answers))
    found = []
    for limit in (total, int(total * 0.3)):
        one = learner({"trunk": trunk}, max_tokens_per_micro_batch=limit)
        torch.nn.init.normal_(
            dict(one.critic.module.named_parameters())["out.weight" if trunk == "shared" else "head.out.weight"],
            generator=torch.Generator().manual_seed(0),
        )
        gradients = {}
        step = one.critic.step

        def keep(one=one, gradients=gradients, step=step):
            gradients |= {name: p.grad.clone() for name, p in one.critic.module.named_parameters()}
            step()

        monkeypatch.setattr(one.critic, "step", keep)
        metrics = update(one, asked(one, answers))
        found.append((gradients, metrics, policy_of(one)))
    (whole, metrics, policy), (parts, again, policy_again) = found
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-3
    assert again == pytest.approx(metrics, abs=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=0, atol=1e-5, msg=name)
    for name, x in policy.items():
        torch.testing.assert_close(policy_again[name], x, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_reloaded_critic_goes_on_bit_for_bit(learner, answers, trunk, tmp_path):
    critic = {"trunk": trunk, "value_clip": 1e-3, "warmup_steps": 4, "warmup_updates": 1, "weight_decay": 0.01}
    straight, resumed = learner(critic), learner(critic)
    update(straight, asked(straight, answers[:12]), 2)
    straight.save(tmp_path)
    straight.saved()
    resumed.load(tmp_path)
    for _ in range(2):
        metrics = [update(one, asked(one, answers), 2) for one in (straight, resumed)]
        assert metrics[0] == metrics[1]
    assert same(critic_of(straight), critic_of(resumed))
    assert same(policy_of(straight), policy_of(resumed))
    assert metrics[0]["clip/frac_value"] > 0


def test_a_checkpoint_with_a_critic_is_still_a_policy(learner, answers, tmp_path):
    one = learner({"trunk": "shared"})
    update(one, answers)
    one.save(tmp_path)
    one.saved()
    assert same(dict(load_model(tmp_path).state_dict()), policy_of(one))


def test_a_return_that_is_not_finite_leaves_policy_and_critic(learner, answers):
    one = learner()
    start, critic = policy_of(one), critic_of(one)
    broken = replace(answers[0], returns=[float("inf")] * len(answers[0].completion_ids))
    assert update(one, [broken, *answers[1:]])["optim/skipped"] == 1
    assert same(policy_of(one), start)
    assert same(critic_of(one), critic)
    assert update(one, answers)["optim/critic_grad_norm"] > 0


def test_passes_of_the_critic_alone_do_not_hide_a_policy_that_never_trains(learner, answers):
    one = learner({"epochs": 3}, max_skipped_steps=3)
    broken = replace(answers[0], advantages=[float("nan")] * len(answers[0].completion_ids))
    samples = [broken, *answers[1:]]
    for _ in range(2):
        assert update(one, samples)["optim/skipped"] == 1
    with pytest.raises(FloatingPointError, match="3 optimizer steps in a row"):
        update(one, samples)
