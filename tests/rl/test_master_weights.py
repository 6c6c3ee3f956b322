"""A policy stored in bf16 learns in fp32, and computes, publishes and stores what its sampler has."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import KimiLinearForCausalLM

from deltarl.model.checkpoint import KEEP_FP32, load_model
from deltarl.rl.batch import TrainSample, split_batch
from deltarl.rl.config import LearnerConfig
from deltarl.rl.learner import Learner
from deltarl.rl.master_weights import MASTERS, hold_masters, masters, plain_name
from deltarl.rl.presets import PRESETS
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams

PPO = PRESETS["ppo"]["learner"]


def learner(folder, **config) -> Learner:
    settings = {"warmup_steps": 0, "learning_rate": 1e-3} | config
    return Learner(LearnerConfig(**settings), str(folder), 10, 1.0)


def sampled(engine: Engine) -> list[TrainSample]:
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 24, n).tolist() for n in (3, 20, 9)]
    groups = engine.generate(prompts, [SamplingParams(n=4, max_tokens=30, stop_token_ids=(2,), seed=1)] * 3)
    answers = [(group.prompt_token_ids, t) for group in groups for t in group.outputs]
    found = [TrainSample.whole(prompt, t.token_ids, t.logprobs, float(rng.normal())) for prompt, t in answers]
    return [replace(s, values=[0.0] * len(s.completion_ids), returns=list(s.advantages)) for s in found]


@pytest.fixture(scope="module")
def samples(bf16_folder) -> list[TrainSample]:
    return sampled(Engine(load_model(bf16_folder)))


def batch(samples, num_minibatches: int = 1):
    return split_batch(samples, 1, num_minibatches)[0]


def published(one: Learner) -> dict[str, torch.Tensor]:
    weights = {name: torch.tensor(x) for name, x in one.weights().arrays.items()}
    return {name: x.view(torch.bfloat16) if x.dtype == torch.int16 else x for name, x in weights.items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_that_bf16_would_lose_add_up_and_are_published_rounded(bf16_folder, samples, optimizer):
    start, one = load_model(bf16_folder).state_dict(), learner(bf16_folder, learning_rate=1e-5, optimizer=optimizer)
    assert {name: x.dtype for name, x in published(one).items()} == {name: x.dtype for name, x in start.items()}
    after = []
    for _ in range(20):
        one.update(batch(samples))
        after.append({name: x.clone() for name, x in masters(one.model).items()})
    lost = moved = came_through = 0
    for name, x in published(one).items():
        if name.endswith(KEEP_FP32):
            assert name not in after[0]
            assert x.dtype == torch.float32
            assert not torch.equal(x, start[name])
            continue
        assert torch.equal(x, after[-1][name].bfloat16()), name
        stepped = after[0][name] != start[name].float()
        lost += int((stepped & (after[0][name].bfloat16() == start[name])).sum())
        moved += int(stepped.sum())
        came_through += int((x != start[name]).sum())
    assert lost > 0.9 * moved
    assert came_through > 3 * (moved - lost)
    state = one.optimizer.optimizer.state
    assert len(state) == len(start)
    assert {x.dtype for slots in state.values() for x in slots.values()} == {torch.float32}


def test_the_learner_computes_with_the_bits_it_publishes(bf16_folder, samples, tmp_path):
    one, engine = learner(bf16_folder), Engine(load_model(bf16_folder))
    first = one.update(batch(samples))
    engine.load_weights(one.weights())
    again = sampled(engine)
    one.save(tmp_path)
    one.saved()
    # The reference model is what the checkpoint stores, as a sampler has it; the policy goes on from its masters.
    resumed = learner(tmp_path, beta=0.1)
    resumed.load(tmp_path)
    assert any((x != x.bfloat16()).any() for x in masters(resumed.model).values())
    second = resumed.update(batch(again))
    assert second["kl/ref"] == 0
    assert first["kl/old"] < 1e-3
    for metrics in (first, second):  # sampler and learner add up in another order, in bf16
        assert metrics["mismatch/k3"] < 1e-3
        assert metrics["mismatch/logprob_abs_max"] < 0.2


@pytest.mark.parametrize(
    "config",
    [
        {"weight_decay": 0.01, "beta": 0.1, "reference_interval": 1, "ptx_weight": 0.2},
        {"optimizer": "muon"},
        PPO,
        PPO | {"critic": {"trunk": "shared"}},
    ],
    ids=["adamw", "muon", "own critic", "shared critic"],
)
def test_a_reloaded_learner_goes_on_bit_for_bit(bf16_folder, samples, tmp_path, config):
    solutions = [TrainSample.solution(s.prompt_ids, s.completion_ids) for s in samples[:2]]
    minibatches = split_batch(samples, 1, 2, solutions)[0]
    straight, resumed = learner(bf16_folder, **config), learner(bf16_folder, **config)
    straight.update(minibatches)
    straight.save(tmp_path)
    straight.saved()
    resumed.load(tmp_path)
    assert resumed.update(minibatches) == straight.update(minibatches)
    modules = [(straight.model, resumed.model)]
    if straight.critic is not None:
        modules.append((straight.critic.module, resumed.critic.module))
    for mine, theirs in modules:
        parameters = dict(theirs.named_parameters())
        assert {p.dtype for p in parameters.values()} == {torch.float32}
        assert all(torch.equal(p, parameters[name]) for name, p in mine.named_parameters())


def test_a_checkpoint_is_one_of_transformers_in_the_stored_dtype_and_masters(bf16_folder, samples, tmp_path):
    one = learner(bf16_folder)
    one.update(batch(samples))
    one.save(tmp_path)
    one.saved()
    theirs, info = KimiLinearForCausalLM.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert theirs.dtype == torch.bfloat16
    weights, ours = published(one), load_model(tmp_path)
    assert all(torch.equal(x, weights[name]) for name, x in ours.state_dict().items())
    ids = torch.tensor([samples[0].prompt_ids])
    torch.testing.assert_close(theirs(ids).logits, ours(input_ids=ids).logits, rtol=0, atol=0.1)
    held = load_file(tmp_path / MASTERS)
    assert held.keys() == {name for name in weights if not name.endswith(KEEP_FP32)}
    assert {x.dtype for x in held.values()} == {torch.float32}
    slots = load_file(tmp_path / "optimizer.safetensors")
    assert {key.split("|")[0] for key in slots} == weights.keys()


@pytest.mark.parametrize("keep_rounded", [True, False])
def test_gradients_are_those_of_the_module_in_bf16_and_no_rounded_weight_need_stay_for_them(
    bf16_folder, samples, keep_rounded
):
    plain, model = load_model(bf16_folder), load_model(bf16_folder)
    hold_masters(model, keep_rounded)
    rounded = []
    for module in model.modules():
        if type(module).__name__ == "_Rounded":
            module.register_forward_hook(lambda m, args, x: rounded.append(StorageWeakRef(x.untyped_storage())))
    ids = torch.tensor([samples[0].prompt_ids + samples[0].completion_ids])
    inputs = {
        "input_ids": ids,
        "cu_seqlens": torch.tensor([0, ids.shape[1]]),
        "logits_to_keep": torch.arange(ids.shape[1] - 1),
        "logprobs_of": ids[:, 1:],
    }
    logprobs, expected = model(**inputs).logprobs, plain(**inputs).logprobs
    assert torch.equal(logprobs, expected)
    assert len(rounded) > 20
    assert all(x.expired() is not keep_rounded for x in rounded)
    logprobs.sum().backward()
    expected.sum().backward()
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, gradients[plain_name(name)].float()), name


def test_nothing_changes_for_a_policy_in_fp32(policy_folder, samples, tmp_path):
    one = learner(policy_folder)
    assert {name for name, _ in one.model.named_parameters()} == load_model(policy_folder).state_dict().keys()
    one.save(tmp_path)
    one.saved()
    assert not (tmp_path / MASTERS).exists()


def test_kept_rounded_weights_follow_every_step_and_what_is_read_outside_a_pass_is_new(bf16_folder, samples):
    model = load_model(bf16_folder)
    hold_masters(model, keep_rounded=True)
    ids = torch.tensor([samples[0].prompt_ids])
    model(input_ids=ids)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    assert torch.equal(model.lm_head.weight, masters(model)["lm_head.weight"].bfloat16())
    fresh = load_model(bf16_folder)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model(input_ids=ids).logits, fresh(input_ids=ids).logits)
