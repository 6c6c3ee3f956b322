"""One optimizer step from sampled answers: on-policy at first, the same for any split, exact after a reload."""

import copy
import json
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch

from deltarl.model.checkpoint import load_model
from deltarl.rl.batch import TrainSample, split_batch
from deltarl.rl.config import LearnerConfig
from deltarl.rl.learner import Learner
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams

TEMPERATURE = 0.8
STOP = 2


@pytest.fixture(scope="module")
def samples(policy_folder) -> list[TrainSample]:
    """24 sampled answers of uneven length with random advantages."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 24, n).tolist() for n in (4, 9, 17, 6)]
    params = SamplingParams(n=6, temperature=TEMPERATURE, max_tokens=40, stop_token_ids=(STOP,), seed=5)
    groups = Engine(load_model(policy_folder)).generate(prompts, params)
    answers = [(group.prompt_token_ids, t) for group in groups for t in group.outputs]
    assert len({len(t.token_ids) for _, t in answers}) > 3
    return [TrainSample.whole(prompt, t.token_ids, t.logprobs, float(rng.normal())) for prompt, t in answers]


@pytest.fixture
def learner(policy_folder):
    def make(temperature=TEMPERATURE, total_updates=10, **config) -> Learner:
        settings = {"num_threads": 1, "warmup_steps": 0, "learning_rate": 1e-3} | config
        return Learner(LearnerConfig(**settings), str(policy_folder), total_updates, temperature)

    return make


def update(learner: Learner, samples, num_minibatches: int = 1) -> dict[str, float]:
    return learner.update(split_batch(samples, 1, num_minibatches)[0])


def with_advantage(sample: TrainSample, advantage: float) -> TrainSample:
    return replace(sample, advantages=[advantage] * len(sample.completion_ids))


def state(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in learner.model.state_dict().items()}


class Recorder:
    """Counts the forward passes of a learner and keeps the gradient its optimizer is given."""

    def __init__(self, learner: Learner, monkeypatch: pytest.MonkeyPatch):
        self.passes, self.gradients = 0, {}
        self._learner, self._forward, self._step = learner, learner._forward, learner.optimizer.step
        monkeypatch.setattr(learner, "_forward", self.count)
        monkeypatch.setattr(learner.optimizer, "step", self.keep)

    def count(self, *args):
        self.passes += 1
        return self._forward(*args)

    def keep(self):
        self.gradients = {name: p.grad.clone() for name, p in self._learner.model.named_parameters()}
        self._step()


def test_gradient_and_metrics_do_not_depend_on_the_micro_batches(learner, samples, monkeypatch):
    total = sum(map(len, samples))
    runs = []
    for limit in (total, int(total * 0.6), int(total * 0.3)):
        one = learner(max_tokens_per_micro_batch=limit)
        recorder = Recorder(one, monkeypatch)
        runs.append((recorder, update(one, samples)))
    assert [recorder.passes for recorder, _ in runs] == [1, 2, 4]
    whole, metrics = runs[0]
    assert max(float(g.abs().max()) for g in whole.gradients.values()) > 1e-2
    for recorder, other in runs[1:]:
        assert other == pytest.approx(metrics, abs=1e-6)
        for name, gradient in whole.gradients.items():
            torch.testing.assert_close(recorder.gradients[name], gradient, rtol=0, atol=1e-6, msg=name)


def test_the_loss_is_the_mean_over_the_tokens_of_the_whole_batch(learner, samples):
    tokens = sum(len(s.completion_ids) for s in samples)
    mean = sum(sum(s.advantages) for s in samples) / tokens
    assert update(learner(), samples)["loss/policy"] == pytest.approx(-mean, abs=1e-5)


def test_the_first_update_is_on_policy(learner, samples):
    metrics = update(learner(), samples)
    assert metrics["kl/old"] < 1e-8
    assert metrics["clip/frac_low"] == metrics["clip/frac_high"] == 0
    assert metrics["mismatch/logprob_abs_max"] <= 1e-5
    assert metrics["mismatch/k3"] < 1e-8
    assert metrics["ratio/max"] == pytest.approx(1, abs=2e-5)
    assert metrics["ratio/mean"] == pytest.approx(1, abs=1e-5)


def test_the_second_minibatch_is_off_policy_and_does_not_count_as_mismatch(learner, samples):
    metrics = update(learner(learning_rate=1e-2), samples, num_minibatches=2)
    assert metrics["kl/old"] > 1e-5
    assert metrics["ratio/max"] > 1.01
    assert metrics["mismatch/logprob_abs_max"] <= 1e-5


def test_log_probabilities_are_taken_at_the_sampling_temperature(learner, samples):
    assert update(learner(temperature=1.0), samples)["mismatch/logprob_abs_max"] > 0.05


def test_answers_with_a_positive_advantage_become_likelier_and_the_others_less_likely(learner, samples):
    better, worse = with_advantage(samples[0], 1.0), with_advantage(samples[-1], -1.0)
    assert better.completion_ids != worse.completion_ids
    one = learner(learning_rate=1e-3)
    update(one, [better, worse])
    for sample, sign in ((better, 1), (worse, -1)):
        again = with_advantage(sample, 0.0)
        ratio = update(one, [again])["ratio/mean"]  # an advantage of 0 only measures
        assert (ratio - 1) * sign > 1e-3


def test_without_advantage_nothing_changes(learner, samples):
    one = learner()
    before = state(one)
    assert update(one, [with_advantage(s, 0.0) for s in samples])["optim/grad_norm"] == 0
    assert all(torch.equal(x, before[name]) for name, x in state(one).items())


def test_weight_decay_is_for_matrices_only(learner):
    one = learner(weight_decay=0.1)
    names = {id(p): name for name, p in one.model.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in one.optimizer.param_groups for p in g["params"]}
    assert decay.keys() == set(names.values())
    for name, parameter in one.model.named_parameters():
        spared = name.endswith(("A_log", "dt_bias", "bias")) or "norm" in name or parameter.ndim < 2
        assert decay[name] == (0.0 if spared else 0.1), name
    assert any(name.endswith("A_log") for name in decay)
    assert any("norm" in name for name in decay)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.0, 0.5, 1.0, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_learning_rate_schedule(learner, samples, schedule, expected):
    one = learner(lr_schedule=schedule, warmup_steps=2, learning_rate=1e-3, total_updates=6)
    rates = [update(one, samples[:2])["optim/lr"] for _ in expected]
    assert rates == pytest.approx([1e-3 * x for x in expected], rel=1e-5)


def poisoned(samples) -> list[TrainSample]:
    return [*samples[:3], with_advantage(samples[3], float("nan"))]


def test_a_gradient_that_is_not_finite_is_left_out_and_leaves_the_weights(learner, samples):
    one = learner()
    before = state(one)
    metrics = update(one, poisoned(samples))
    assert metrics["optim/skipped"] == 1
    assert np.isnan(metrics["optim/grad_norm"])
    assert all(torch.equal(x, before[name]) for name, x in state(one).items())
    assert one.scheduler.last_epoch == 0
    after = update(one, samples)
    assert after["kl/old"] < 1e-8  # nothing of the bad gradient is left either
    assert after["optim/skipped"] == 0


def test_a_loss_that_is_not_finite_is_left_out_though_its_gradient_is(learner, samples, monkeypatch):
    """The straight-through estimate has the value of k3, which overflows, and the gradient of k2."""
    one = learner(beta=0.1, kl_estimator="k3_straight_through")
    monkeypatch.setattr(one, "_reference_logprobs", lambda batch: torch.full_like(batch.sampler_logprobs, 1e3))
    before = state(one)
    assert update(one, samples)["optim/skipped"] == 1
    assert all(torch.equal(x, before[name]) for name, x in state(one).items())


def test_so_many_bad_steps_in_a_row_stop_the_run_also_across_a_reload(learner, samples, tmp_path):
    one = learner(max_skipped_steps=3)
    for _ in range(2):  # a good step in between starts the count anew
        update(one, poisoned(samples))
        update(one, poisoned(samples))
        update(one, samples)
    update(one, poisoned(samples))
    one.save(tmp_path)
    one.saved()
    resumed = learner(max_skipped_steps=3)
    resumed.load(tmp_path)
    update(resumed, poisoned(samples))
    with pytest.raises(FloatingPointError, match=r"3 optimizer steps in a row, the last in update 9 \(loss nan"):
        update(resumed, poisoned(samples))


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_reloaded_learner_goes_on_bit_for_bit(learner, samples, tmp_path, schedule):
    config = {"weight_decay": 0.01, "warmup_steps": 2, "lr_schedule": schedule, "beta": 0.05, "learning_rate": 1e-2}
    straight = learner(**config)
    update(straight, samples[:12], 2)
    straight.save(tmp_path)
    straight.saved()
    resumed = learner(**config)
    resumed.load(tmp_path)
    assert resumed.version == straight.version == 1
    assert resumed.weights().checksum == straight.weights().checksum
    for _ in range(2):
        assert update(resumed, samples[12:], 2) == update(straight, samples[12:], 2)
    assert resumed.version == 3
    for name, x in state(straight).items():
        assert torch.equal(state(resumed)[name], x), name


def test_a_checkpoint_is_of_when_it_was_asked_for_and_errors_come_with_the_next(learner, samples, tmp_path):
    one, gate, done = learner(), Event(), []
    update(one, samples[:12], 2)
    published, optimizer = one.weights().checksum, copy.deepcopy(one.optimizer.optimizer.state_dict())
    one._writer.submit(gate.wait)  # so that it is written after the next update
    (tmp_path / "first").mkdir()
    one.save(tmp_path / "first", lambda: done.append(one.weights().version))
    update(one, samples[12:], 2)
    assert not list((tmp_path / "first").iterdir())
    gate.set()
    one.saved()
    assert done == [2]
    other = learner()
    other.load(tmp_path / "first")
    assert (other.version, other.weights().checksum) == (1, published)
    loaded = other.optimizer.optimizer.state_dict()["state"]
    for i, slots in optimizer["state"].items():
        assert all(torch.equal(x, loaded[i][name]) for name, x in slots.items())

    one.save(tmp_path / "first" / "config.json" / "second")
    with pytest.raises(OSError, match="Not a directory"):
        one.save(tmp_path / "third")


def test_a_checkpoint_of_the_learner_is_a_model_and_nothing_that_must_be_unpickled(learner, samples, tmp_path):
    one = learner()
    update(one, samples)
    one.save(tmp_path)
    one.saved()
    assert {f.suffix for f in tmp_path.iterdir()} == {".json", ".safetensors"}
    assert json.loads((tmp_path / "learner_state.json").read_text())["version"] == 1
    trained = state(one)
    assert all(torch.equal(x, trained[name]) for name, x in load_model(tmp_path).state_dict().items())


def test_published_weights_are_those_of_the_step(learner, samples, policy_folder):
    one = learner()
    before = one.weights()
    update(one, samples)
    after = one.weights()
    assert (before.version, after.version) == (0, 1)
    engine = Engine(load_model(policy_folder))
    engine.load_weights(after)
    trained = state(one)
    assert all(torch.equal(x, trained[name]) for name, x in engine.model.state_dict().items())
    assert before.checksum != after.checksum


def test_beta_holds_the_policy_to_the_model_it_started_from(learner, samples):
    assert learner().reference is None
    free, held = learner(learning_rate=1e-2), learner(learning_rate=1e-2, beta=5.0)
    assert "kl/ref" not in update(free, samples)
    first = update(held, samples)
    assert first["kl/ref"] == pytest.approx(0, abs=1e-9)  # the reference is the starting point
    start = [p.clone() for p in held.reference.parameters()]
    distances = [update(held, samples)["kl/ref"] for _ in range(4)]
    assert distances[0] > 1e-5
    assert all(torch.equal(a, b) for a, b in zip(start, held.reference.parameters(), strict=True))
    weak = learner(learning_rate=1e-2, beta=1e-6)
    update(weak, samples)
    assert [update(weak, samples)["kl/ref"] for _ in range(4)][-1] > distances[-1]
