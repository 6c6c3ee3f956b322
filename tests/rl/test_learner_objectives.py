"""Every algorithm through the learner: the same gradient for any split, the reference model, the correction."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deltarl.model.checkpoint import load_model
from deltarl.reward.rewards import ScoreReport
from deltarl.rl.batch import PackedBatch, TrainSample, micro_batches, split_batch
from deltarl.rl.config import LearnerConfig
from deltarl.rl.credit import assign_credit
from deltarl.rl.episodes import Episodes
from deltarl.rl.learner import Learner
from deltarl.rl.objectives.correction import USUAL_BOUNDS
from deltarl.rl.presets import PRESETS
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams

MAX_TOKENS = 40
CORRECTED = {f"corrected by {kind}": {"correction": kind, "beta": 0.1} for kind in USUAL_BOUNDS}
OBJECTIVES = {name: preset.get("learner", {}) for name, preset in PRESETS.items()} | CORRECTED


@pytest.fixture(scope="module")
def samples(policy_folder) -> list[TrainSample]:
    """24 answers of uneven length, whose recorded log-probabilities are a little off: as from another sampler."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 24, n).tolist() for n in (4, 9, 17, 6)]
    params = SamplingParams(n=6, max_tokens=MAX_TOKENS, stop_token_ids=(2,), seed=5)
    groups = Engine(load_model(policy_folder)).generate(prompts, params)
    found = [
        TrainSample.whole(
            group.prompt_token_ids,
            t.token_ids,
            (np.array(t.logprobs) + rng.normal(0, 0.05, len(t.logprobs))).tolist(),
            float(rng.normal()),
        )
        for group in groups
        for t in group.outputs
    ]
    returns = [rng.normal(size=len(s.completion_ids)).tolist() for s in found]
    return [replace(s, values=[0.0] * len(r), returns=r) for s, r in zip(found, returns, strict=True)]


@pytest.fixture
def learner(policy_folder):
    def make(**config) -> Learner:
        settings = {"num_threads": 1, "warmup_steps": 0, "learning_rate": 1e-3, "max_grad_norm": 1e9} | config
        return Learner(LearnerConfig(**settings), str(policy_folder), 10, 1.0, MAX_TOKENS)

    return make


def gradient(learner: Learner, minibatches) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """What the optimizer is given in its last step, and the metrics."""
    found = {}
    step = learner.optimizer.step

    def keep():
        found.update({name: p.grad.clone() for name, p in learner.model.named_parameters()})
        step()

    learner.optimizer.step = keep
    metrics = learner.update(minibatches)
    return found, metrics


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_and_metrics_do_not_depend_on_micro_batches_or_their_order(learner, samples, name):
    config, total = OBJECTIVES[name], sum(map(len, samples))
    whole, metrics = gradient(learner(**config, max_tokens_per_micro_batch=total), split_batch(samples, 1, 1)[0])
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-4
    size = max(float(g.abs().max()) for g in whole.values())
    for limit, order in ((int(total * 0.3), samples), (1, samples[::-1])):
        cut, others = gradient(learner(**config, max_tokens_per_micro_batch=limit), split_batch(order, 1, 1)[0])
        for key, g in cut.items():
            torch.testing.assert_close(g, whole[key], rtol=1e-4, atol=2e-5 * size, msg=key)
        assert others == pytest.approx(metrics, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_shares_of_ranks_add_up_to_the_gradient_of_one(learner, samples, name):
    """What the ranks' processes exchange is covered by test_learner_ranks; here, that the shares are the right ones."""
    config = OBJECTIVES[name]
    alone, _ = gradient(learner(**config), split_batch(samples, 1, 1)[0])
    shares = [gradient(learner(**config), rank)[0] for rank in split_batch(samples, 3, 1)]
    size = max(float(g.abs().max()) for g in alone.values())
    for key, g in alone.items():
        together = shares[0][key] + shares[1][key] + shares[2][key]
        torch.testing.assert_close(together, g, rtol=1e-4, atol=2e-5 * size, msg=key)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_first_update_is_on_policy(learner, samples, policy_folder, name):
    own = score(policy_folder, samples) if "corrected" not in name else samples
    metrics = learner(**OBJECTIVES[name]).update(split_batch(own, 1, 1)[0])
    assert metrics["kl/old"] < 1e-8
    assert metrics["ratio/max"] == pytest.approx(1, abs=2e-4)  # the product over an answer adds up its rounding
    assert metrics["clip/frac_low"] == metrics["clip/frac_high"] == 0


def score(folder, samples) -> list[TrainSample]:
    """The answers with the learner's own log-probabilities as the sampler's."""
    one = Learner(LearnerConfig(num_threads=1), str(folder), 1, 1.0)
    minibatch = one._with_old_logprobs(split_batch(samples, 1, 1)[0][0])
    return [replace(s, logprobs=s.old_logprobs, old_logprobs=None) for s in minibatch.samples]


def test_an_answer_is_never_cut_by_a_micro_batch(samples):
    for limit in (1, 30, 100, 10**6):
        assert [s for run in micro_batches(samples, limit) for s in run] == samples


def test_the_constant_is_the_longest_possible_answer(learner, samples, policy_folder):
    mean, constant = (learner(aggregation=a).update(split_batch(samples, 1, 1)[0]) for a in ("token_mean", "constant"))
    tokens = sum(len(s.completion_ids) for s in samples)
    share = tokens / (len(samples) * MAX_TOKENS)
    assert constant["loss/policy"] == pytest.approx(mean["loss/policy"] * share, rel=1e-6)
    assert constant["optim/grad_norm"] == pytest.approx(mean["optim/grad_norm"] * share, rel=1e-4)
    with pytest.raises(ValueError, match="'constant' divides by the longest possible answer"):
        Learner(LearnerConfig(aggregation="constant"), str(policy_folder), 10, 1.0)


@pytest.mark.parametrize("minibatches", [1, 2, 3])
def test_a_correction_tells_the_three_policies_apart(learner, samples, minibatches):
    """The ratio is to the weights the iteration starts with, in every minibatch; the sampler's are a mismatch."""
    settings = {"learning_rate": 1e-2, "max_grad_norm": 1.0}
    share = split_batch(samples, 1, minibatches)[0]
    plain = learner(**settings).update(share)
    corrected = learner(correction="token_truncate", **settings).update(share)
    assert plain["ratio/max"] > 1.1
    if minibatches == 1:
        assert corrected["ratio/max"] == pytest.approx(1)
        assert corrected["kl/old"] == 0
        compared = {n: x for n, x in plain.items() if n.startswith("mismatch/")}
        assert {n: corrected[n] for n in compared} == pytest.approx(compared)
    else:
        assert corrected["kl/old"] > 1e-6
    assert corrected["mismatch/logprob_abs_mean"] == pytest.approx(0.04, rel=0.2)  # of N(0, 0.05), and of all answers


def test_old_logprobs_are_those_of_the_start_for_every_minibatch(learner, samples, monkeypatch):
    one, seen = learner(correction="token_mask", learning_rate=1e-2), []
    accumulate = one._accumulate

    def keep(minibatch, *args, **kwargs):
        seen.append(minibatch)
        return accumulate(minibatch, *args, **kwargs)

    monkeypatch.setattr(one, "_accumulate", keep)
    share = split_batch(samples, 1, 3)[0]
    expected = [learner()._with_old_logprobs(m) for m in share]
    one.update(share)
    assert [s.old_logprobs for s in seen[0].samples] == [None] * len(share[0].samples)  # taken as they come
    for found, wanted in zip(seen[1:], expected[1:], strict=True):
        assert [s.old_logprobs for s in found.samples] == [s.old_logprobs for s in wanted.samples]
        assert [s.logprobs for s in found.samples] == [s.logprobs for s in wanted.samples]


def test_masked_answers_teach_nothing(learner, samples):
    far = [replace(s, logprobs=[x - 5 for x in s.logprobs]) for s in samples]
    before = learner(correction="sequence_mask")
    start = [p.clone() for p in before.model.parameters()]
    metrics = before.update(split_batch(far, 1, 1)[0])
    assert metrics["clip/frac_corrected"] == 1
    assert metrics["optim/grad_norm"] == 0
    assert all(torch.equal(a, b) for a, b in zip(start, before.model.parameters(), strict=True))


def test_effective_sample_size(learner, samples, policy_folder):
    share = split_batch(score(policy_folder, samples), 1, 1)[0]
    same = learner().update(share)
    assert same["mismatch/ess"] == pytest.approx(1, abs=1e-6)
    assert same["mismatch/ess_answer"] == pytest.approx(1, abs=1e-5)
    assert same["mismatch/ratio_max"] == pytest.approx(1, abs=1e-4)
    rng = np.random.default_rng(3)
    noise = [rng.normal(0, 0.5, len(s.logprobs)) for s in share[0].samples]
    shifted = [replace(s, logprobs=(s.logprobs - n).tolist()) for s, n in zip(share[0].samples, noise, strict=True)]
    off = learner().update(split_batch(shifted, 1, 1)[0])
    for name, log_weights in (("ess", np.concatenate(noise)), ("ess_answer", np.array([n.sum() for n in noise]))):
        w = np.exp(log_weights)
        assert off[f"mismatch/{name}"] == pytest.approx(w.sum() ** 2 / (len(w) * (w**2).sum()), rel=1e-3)
    assert off["mismatch/kl"] == pytest.approx(-np.concatenate(noise).mean(), rel=1e-3)


def test_kl_of_whole_answers(learner, samples, policy_folder):
    one = learner(beta=0.1, kl_in="reward", kl_estimator="k1", max_tokens_per_micro_batch=100)
    own = score(policy_folder, samples)  # the reference is the policy's start
    exact = np.array([sum(s.logprobs) - sum(o.logprobs) for s, o in zip(samples, own, strict=True)])
    assert np.abs(exact).max() > 0.1
    np.testing.assert_allclose([sum(kl) for kl in one.token_kl(samples)], exact, atol=1e-4)
    assert one.token_kl([]) == []
    assert "kl/ref" not in one.update(split_batch(samples, 1, 1)[0])  # it is in the advantages already


@pytest.mark.parametrize("estimator", ["k2", "k3", "k3_straight_through", "unbiased"])
def test_every_estimator_in_the_loss_holds_the_policy(learner, samples, estimator):
    def distance(beta: float) -> float:
        one = learner(learning_rate=1e-2, beta=beta, kl_estimator=estimator, max_grad_norm=1.0)
        return [one.update(split_batch(samples, 1, 1)[0])["kl/ref"] for _ in range(5)][-1]

    assert distance(5.0) < 0.7 * distance(1e-6)


def test_beta_of_an_update_goes_before_that_of_the_config(learner, samples):
    share = split_batch(samples, 1, 1)[0]
    runs = []
    for config, beta in ((0.5, None), (0.1, 0.5), (0.1, None)):
        one = learner(beta=config, learning_rate=1e-2)
        for _ in range(2):
            metrics = one.update(share, beta)
        runs.append(metrics["loss/policy"])
    assert runs[0] == runs[1] != runs[2]


def test_the_reference_follows_every_n_steps_and_comes_back_with_the_checkpoint(learner, samples, tmp_path):
    config = {"beta": 0.1, "reference_interval": 2, "learning_rate": 1e-2}
    share = split_batch(samples, 1, 1)[0]
    one = learner(**config)
    distances = [one.update(share)["kl/ref"] for _ in range(5)]
    assert distances[0] < 1e-9
    assert distances[1] > 1e-6
    assert distances[2] < 1e-9  # after step 2 the policy itself
    assert distances[4] < 1e-9
    assert one.version == 5
    one.save(tmp_path)
    one.saved()
    again = learner(**config)
    again.load(tmp_path)
    for _ in range(3):
        assert again.update(share) == one.update(share)


def test_a_reference_that_stays_is_not_saved(learner, tmp_path):
    one = learner(beta=0.1)
    one.save(tmp_path)
    one.saved()
    assert not (tmp_path / "reference").exists()


def test_imitation_adds_its_gradient_for_any_split(learner, samples):
    """Of the answers' loss plus the weight times the mean negative log-probability of the solutions' tokens."""
    shown = [TrainSample.solution(s.prompt_ids, s.completion_ids) for s in samples[:7]]
    plain, _ = gradient(learner(), split_batch(samples, 1, 1)[0])
    both, metrics = gradient(learner(ptx_weight=0.5), split_batch(samples, 1, 1, shown)[0])
    one = learner()
    with torch.enable_grad():
        logprobs = one._logprobs(one.model, PackedBatch.pack(shown, one.accelerator.device))
        (-logprobs.mean()).backward()
    assert metrics["loss/ptx"] == pytest.approx(-float(logprobs.detach().mean()), rel=1e-5)
    for name, p in one.model.named_parameters():
        torch.testing.assert_close(both[name], plain[name] + 0.5 * p.grad, rtol=1e-4, atol=1e-5, msg=name)
    cut, others = gradient(learner(ptx_weight=0.5, max_tokens_per_micro_batch=60), split_batch(samples, 1, 1, shown)[0])
    assert others == pytest.approx(metrics, rel=1e-4, abs=1e-5)
    shares = [gradient(learner(ptx_weight=0.5), rank)[0] for rank in split_batch(samples, 9, 1, shown)]  # two get none
    for name, g in both.items():
        torch.testing.assert_close(cut[name], g, rtol=1e-4, atol=1e-5, msg=name)
        torch.testing.assert_close(sum(share[name] for share in shares), g, rtol=1e-4, atol=1e-5, msg=name)


def test_imitation_makes_the_solutions_likelier(learner, samples):
    shown = [TrainSample.solution(s.prompt_ids, s.completion_ids) for s in samples[:6]]
    one = learner(ptx_weight=1.0, learning_rate=1e-2)
    still = [replace(s, advantages=[0.0] * len(s.completion_ids)) for s in samples]
    losses = [one.update(split_batch(still, 1, 2, shown)[0])["loss/ptx"] for _ in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


class Alone:
    """The one rank of a learner."""

    def __init__(self, rank: Learner):
        self.rank = rank

    def scatter(self, method, args):
        return [getattr(self.rank, method)(*a) for a in args]


@pytest.mark.parametrize("name", PRESETS)
def test_every_algorithm_learns(policy_folder, learner, name):
    """From answers scored by their share of small tokens, in two updates a step; the second is off-policy."""
    config = LearnerConfig(**PRESETS[name].get("learner", {}))
    one = learner(**PRESETS[name].get("learner", {}), learning_rate=3e-3, max_grad_norm=1.0)
    engine, means = Engine(load_model(policy_folder)), []
    prompts = [[3 + i] * 4 for i in range(4)]
    for step in range(12):
        params = [SamplingParams(n=8, max_tokens=8, seed=100 * step + i) for i in range(len(prompts))]
        groups = engine.generate(prompts, params)
        scores = [float(np.mean(np.array(t.token_ids) < 12)) for group in groups for t in group.outputs]
        means.append(np.mean(scores))
        episodes = Episodes([], groups, [""] * len(scores), ScoreReport(scores, None, {}))
        batch, _ = assign_credit(episodes, range(len(groups)), config, 0.0, Alone(one))
        one.update(split_batch(batch, 1, 2)[0])
        engine.load_weights(one.weights())
    assert np.mean(means[-3:]) > means[0] + 0.15
