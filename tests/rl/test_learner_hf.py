"""A causal language model of transformers as the policy: sampled by transformers, trained by the same learner."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from deltarl.model.policy import load_policy
from deltarl.rl.batch import TrainSample, split_batch
from deltarl.rl.config import LearnerConfig
from deltarl.rl.learner import Learner
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.worker import make_backend

VOCAB, TEMPERATURE = 24, 0.8


def qwen2() -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, tie_word_embeddings=True, initializer_range=0.2))


def llama() -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.2))


def gpt2() -> PreTrainedModel:
    """Has dropout, and learned positions."""
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=128, initializer_range=0.2)
    )


@pytest.fixture(params=[qwen2, llama, gpt2], ids=lambda make: make.__name__)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    request.param().save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture
def learner(folder: Path) -> Callable[..., Learner]:
    def make(**config) -> Learner:
        settings = {"num_threads": 1, "warmup_steps": 0, "learning_rate": 1e-2} | config
        return Learner(LearnerConfig(**settings), str(folder), 10, TEMPERATURE)

    return make


def sampled(folder: Path) -> list[TrainSample]:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, VOCAB, n).tolist() for n in (4, 9, 17)]
    params = SamplingParams(n=4, temperature=TEMPERATURE, max_tokens=30, stop_token_ids=(2,), seed=5)
    outputs = make_backend("transformers", str(folder), max_num_seqs=8).generate(prompts, params)
    answers = [(output.prompt_token_ids, t) for output in outputs for t in output.outputs]
    assert len({len(t.token_ids) for _, t in answers}) > 1
    return [TrainSample.whole(prompt, t.token_ids, t.logprobs, float(rng.normal())) for prompt, t in answers]


def test_the_first_step_is_on_policy_and_changes_the_weights_that_are_published(folder, learner):
    samples, one = sampled(folder), learner()
    sampler = make_backend("transformers", str(folder), max_num_seqs=8)
    before = sampler.generate([[5, 6, 7]], SamplingParams(max_tokens=20, seed=1))[0].outputs[0]
    metrics = one.update(split_batch(samples, 1, 1)[0])
    assert metrics["mismatch/logprob_abs_max"] <= 1e-5
    assert metrics["kl/old"] < 1e-8
    assert metrics["optim/grad_norm"] > 0
    assert 0 < metrics["entropy"] <= np.log(VOCAB)
    sampler.load_weights(one.weights())
    after = sampler.generate([[5, 6, 7]], SamplingParams(max_tokens=20, seed=1))[0].outputs[0]
    assert after.weight_versions == [1] * 20
    assert after.logprobs != before.logprobs
    ids = torch.tensor([[5, 6, 7, *after.token_ids]])
    with torch.no_grad():
        every = one.model.model(ids).logits[0, 2:-1].log_softmax(-1)
    want = every.gather(-1, torch.tensor(after.token_ids).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(torch.tensor(after.logprobs), want, atol=1e-5, rtol=0)


def test_the_update_does_not_depend_on_the_split(folder, learner):
    samples = sampled(folder)
    whole, pieces = learner(), learner(max_tokens_per_micro_batch=50)
    for one in (whole, pieces):
        one.update(split_batch(samples, 1, 1)[0])
    theirs = pieces.model.state_dict()
    start = load_policy(folder).state_dict()
    for name, x in whole.model.state_dict().items():
        torch.testing.assert_close(x, theirs[name], atol=2e-4, rtol=0)  # 2 % of the step, which Adam normalises
    assert any((x - start[name]).abs().max() > 5e-3 for name, x in theirs.items())


def test_a_checkpoint_restores_weights_and_optimizer(folder, learner, tmp_path):
    samples, one, other = sampled(folder), learner(), learner()
    batch = split_batch(samples, 1, 1)[0]
    one.update(batch)
    one.save(tmp_path / "saved")
    one.saved()
    other.load(tmp_path / "saved")
    assert other.version == 1
    for learner_ in (one, other):
        learner_.update(batch)
    theirs = other.model.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in one.model.state_dict().items())


def test_a_reference_model_is_the_starting_point(folder, learner):
    samples, held = sampled(folder), learner(beta=1.0)
    first = held.update(split_batch(samples, 1, 1)[0])
    assert first["kl/ref"] == pytest.approx(0, abs=1e-9)
    assert held.update(split_batch(samples, 1, 1)[0])["kl/ref"] > 1e-6


def test_a_bf16_checkpoint_is_trained_in_fp32_and_published_in_bf16(tmp_path):
    torch.manual_seed(0)
    qwen2().bfloat16().save_pretrained(tmp_path / "policy")
    path = str(tmp_path / "policy")
    one = Learner(LearnerConfig(warmup_steps=0, learning_rate=1e-6), path, 10, TEMPERATURE)
    start = load_policy(path).state_dict()
    samples = sampled(tmp_path / "policy")
    for _ in range(2):
        one.update(split_batch(samples, 1, 1)[0])
    now = one.model.state_dict()
    moved = [(x - start[name]).abs() for name, x in now.items()]
    assert torch.cat([x.flatten() for x in moved]).median() > 1e-7  # bf16 would round steps of 1e-6 away
    sampler = make_backend("transformers", path, max_num_seqs=8)
    sampler.load_weights(one.weights())
    assert sampler.generate([[5, 6, 7]], SamplingParams(max_tokens=4, seed=1))[0].outputs[0].weight_versions == [2] * 4
    assert sampler.model.dtype == torch.bfloat16
    one.save(tmp_path / "saved")
    one.saved()
    other = Learner(LearnerConfig(warmup_steps=0, learning_rate=1e-6), path, 10, TEMPERATURE)
    other.load(tmp_path / "saved")
    assert all(torch.equal(x, now[name]) for name, x in other.model.state_dict().items())
    assert other.weights().checksum == one.weights().checksum
