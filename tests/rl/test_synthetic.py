"""The synthetic tasks as tokens: what is wanted follows from what came before, and a model learns it."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deltarl.rl.config import ModelConfig
from deltarl.rl.synthetic.figure import best, draw, read_points
from deltarl.rl.synthetic.step import TrainingStep
from deltarl.rl.synthetic.tasks import POP, PUSH, SEPARATOR, TASKS, VOCAB_SIZE, make
from deltarl.rl.synthetic.trial import Trial, run_trial
from deltarl.rl.warm_start import new_model


def solve(task: str, ids: list[int]) -> dict[int, int]:
    """The tokens that the ones before them determine, by their place."""
    if task == "palindrome":
        half = ids.index(SEPARATOR)
        return {half + 1 + i: ids[half - 1 - i] for i in range(half)}
    if task == "mqar":
        half = len(ids) // 2
        values = dict(zip(ids[:half:2], ids[1:half:2], strict=True))
        assert len(values) == half // 2, "a key stands there twice"
        return {i + 1: values[ids[i]] for i in range(half, len(ids), 2)}
    stacks, found = {}, {}
    for i in range(0, len(ids), 3):
        what, stack, symbol = ids[i : i + 3]
        assert what in (PUSH, POP)
        if what == PUSH:
            stacks.setdefault(stack, []).append(symbol)
        else:
            found[i + 2] = stacks[stack].pop()
    return found


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [17, 256, 2048])
def test_wanted_tokens_follow_from_the_others(task, length):
    batch = make(task, np.random.default_rng(0), 4, length)
    assert length - 3 <= batch.ids.shape[1] <= length
    assert batch.ids.min() >= SEPARATOR
    assert batch.ids.max() < VOCAB_SIZE
    for ids, wanted in zip(batch.ids.tolist(), batch.wanted, strict=True):
        found = solve(task, ids)
        assert found == {i: ids[i] for i in wanted.nonzero()[0].tolist()}
        assert not wanted[0]


@pytest.mark.parametrize("task", TASKS)
def test_batches_follow_their_seed_and_differ(task):
    first, again, other = (make(task, np.random.default_rng((1, seed)), 3, 64).ids for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[0] != first[1]).any()


def test_no_symbol_is_right_much_more_often_than_by_chance():
    for task in TASKS:
        batch = make(task, np.random.default_rng(0), 64, 256)
        wanted = batch.ids[batch.wanted]
        assert np.bincount(wanted).max() / len(wanted) < 3 / 128


def test_what_is_no_task_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown task 'sort'; there are palindrome, mqar, stack"):
        make("sort", rng, 1, 64)
    with pytest.raises(ValueError, match="at least 16 tokens, got 8"):
        make("stack", rng, 1, 8)
    with pytest.raises(ValueError, match="has 1024 keys, and length = 8192 needs 2048: length is at most 4096"):
        make("mqar", rng, 1, 8192)


TINY = ModelConfig(
    hidden_size=32, num_hidden_layers=2, full_attention_every=2, linear_num_heads=2, linear_head_dim=16,
    num_attention_heads=2, intermediate_size=32, qk_nope_head_dim=8, v_head_dim=16, kv_lora_rank=16,
)  # fmt: skip
TRIAL = Trial("mqar", 16, "tiny", 0, 1e-2, steps=12, batch_size=4, eval_interval=4, eval_sequences=8)


def run(trial, folder, model=TINY, tell=lambda point: None):
    return run_trial(trial, model, folder, tell)


def test_a_trial_that_was_stopped_goes_on_to_the_same_curve(tmp_path):
    class Stop(Exception):
        pass

    def stop(point):
        if point["step"] == 8:
            raise Stop

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = run(TRIAL, tmp_path / "a")
    assert [point["step"] for point in whole["curve"]] == [4, 8, 12]
    assert whole["curve"][2]["loss"] < whole["curve"][0]["loss"]
    with pytest.raises(Stop):
        run(TRIAL, tmp_path / "b", tell=stop)
    told = []
    assert run(TRIAL, tmp_path / "b", tell=told.append) == whole
    assert [point["step"] for point in told] == [8, 12], "it starts again after the last point that was saved"
    assert [file.name for file in (tmp_path / "b").iterdir()] == [f"{TRIAL.name}.json"]
    assert json.loads((tmp_path / "b" / f"{TRIAL.name}.json").read_text()) == whole


def test_a_trial_of_the_same_name_and_other_settings_is_refused(tmp_path):
    (tmp_path / f"{TRIAL.name}.json").write_text(json.dumps({"steps": 5}))
    with pytest.raises(ValueError, match=r"another .* choose another folder"):
        run(TRIAL, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_small_model_learns_the_task(task, tmp_path):
    """About four minutes each on a core."""
    model = ModelConfig(
        hidden_size=64, num_hidden_layers=2, full_attention_every=3, linear_head_dim=32, intermediate_size=128
    )
    trial = Trial(task, 32, "kda", 0, 3e-3, steps=1500, batch_size=32, eval_interval=100, eval_sequences=128)
    assert max(point["token_accuracy"] for point in run(trial, tmp_path, model)["curve"]) > 0.7


@pytest.mark.parametrize("task", TASKS)  # with half of the tokens wanted, a quarter, and a number that changes
def test_a_step_leaves_the_gradient_of_the_wanted_tokens_alone(task):
    policy = new_model(TINY, VOCAB_SIZE, 0)
    batches = [make(task, np.random.default_rng(seed), 3, 32) for seed in (0, 1)]
    learn = TrainingStep(policy, batches[0], max_grad_norm=0.1)
    for batch in batches:
        loss = learn(batch)
        found = [p.grad.clone() for p in policy.parameters()]
        policy.zero_grad()
        ids, wanted = torch.tensor(batch.ids), torch.tensor(batch.wanted)
        expected = F.cross_entropy(policy(ids).logits[:, :-1][wanted[:, 1:]], ids[wanted])
        expected.backward()
        assert float(torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.1)) > 0.1
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for gradient, p in zip(found, policy.parameters(), strict=True):
            torch.testing.assert_close(gradient, p.grad, rtol=1e-4, atol=1e-6)


def test_the_figure_shows_each_arm_at_the_rate_whose_peak_is_highest_on_average(tmp_path):
    peaks = {("a", 0.1): (0.2, 1.0), ("a", 0.2): (0.7, 0.7), ("b", 0.1): (0.5, 0.5), ("b", 0.2): (0.4, 0.4)}
    for (arm, rate), found in peaks.items():
        for seed, peak in enumerate(found):
            curve = [{"step": i, "token_accuracy": accuracy} for i, accuracy in enumerate((0.0, peak, 0.1))]
            trial = {"task": "mqar", "length": 16, "arm": arm, "learning_rate": rate, "seed": seed, "curve": curve}
            (tmp_path / f"{arm}{rate}{seed}.json").write_text(json.dumps(trial))
    points = read_points(sorted(tmp_path.glob("*.json")))
    chosen = best(points)[["arm", "learning_rate"]].drop_duplicates()
    assert chosen.values.tolist() == [["a", 0.2], ["b", 0.1]]
    together = {"trials": [json.loads(file.read_text()) for file in tmp_path.glob("a*.json")]}
    (tmp_path / "all.json").write_text(json.dumps(together))
    assert set(read_points([tmp_path / "all.json"])["arm"]) == {"a"}
    draw(points, [16], tmp_path / "figure.png")
    draw(points.assign(token_accuracy=0.5), [16], tmp_path / "other.png")
    assert (tmp_path / "figure.png").read_bytes() != (tmp_path / "other.png").read_bytes()
    apart = points.assign(token_accuracy=points["seed"].map({0: 0.25, 1: 0.75}))  # the same mean
    draw(apart, [16], tmp_path / "apart.png")
    assert (tmp_path / "apart.png").read_bytes() != (tmp_path / "other.png").read_bytes()
