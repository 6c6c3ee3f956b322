"""LoRA: only adapters learn, samplers agree after they got merged weights, checkpoints are peft's and ours."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from deltarl.model.checkpoint import load_model
from deltarl.model.policy import load_trainable
from deltarl.rl import warm_start
from deltarl.rl.batch import TrainSample, split_batch
from deltarl.rl.config import LearnerConfig
from deltarl.rl.learner import Learner
from deltarl.rl.plan import make_plan
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams
from deltarl.rollout.worker import make_backend

peft = pytest.importorskip("peft", reason="LoRA needs peft: pip install 'deltarl[lora]'")

LORA = {"rank": 4, "alpha": 8}


def learner(folder, **config) -> Learner:
    settings = {"warmup_steps": 0, "learning_rate": 1e-2, "lora": LORA} | config
    return Learner(LearnerConfig(**settings), str(folder), 10, 1.0)


def sampled(backend) -> list[TrainSample]:
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 24, n).tolist() for n in (3, 20, 9)]
    groups = backend.generate(prompts, [SamplingParams(n=4, max_tokens=30, stop_token_ids=(2,), seed=1)] * 3)
    answers = [(group.prompt_token_ids, t) for group in groups for t in group.outputs]
    return [TrainSample.whole(prompt, t.token_ids, t.logprobs, float(rng.normal())) for prompt, t in answers]


def batch(samples, num_minibatches: int = 1):
    return split_batch(samples, 1, num_minibatches)[0]


def test_merged_weights_make_the_sampler_agree_after_updates(policy_folder):
    one, engine = learner(policy_folder), Engine(load_model(policy_folder))
    for _ in range(3):
        assert one.update(batch(sampled(engine)))["mismatch/logprob_abs_max"] <= 1e-5
        engine.load_weights(one.weights())
    start, now = load_model(policy_folder).state_dict(), engine.model.state_dict()
    moved = {name.split(".")[-2] for name, x in start.items() if (x - now[name]).abs().max() > 1e-3}
    kda = {"q_proj", "k_proj", "v_proj", "o_proj", "f_a_proj", "f_b_proj", "g_a_proj", "g_b_proj", "b_proj"}
    assert moved == kda | {"kv_a_proj_with_mqa", "kv_b_proj"}
    for name, x in start.items():
        assert name.split(".")[-2] in moved or torch.equal(x, now[name]), name


def test_only_adapters_learn_and_have_optimizer_state(policy_folder):
    one = learner(policy_folder)
    one.update(batch(sampled(Engine(load_model(policy_folder)))))
    learned = {name for name, p in one.model.named_parameters() if p.requires_grad}
    assert learned
    assert all(".lora_" in name for name in learned)
    assert {p.numel() for p in one.optimizer.optimizer.state} <= {
        p.numel() for name, p in one.model.named_parameters() if name in learned
    }
    assert len(one.optimizer.optimizer.state) == len(learned)


def test_every_rank_and_every_start_has_the_same_adapters(policy_folder):
    state = torch.get_rng_state()
    one, two = (dict(learner(policy_folder).model.named_parameters()) for _ in range(2))
    assert all(torch.equal(x, two[name]) for name, x in one.items())
    assert torch.equal(state, torch.get_rng_state())  # and nothing else is drawn differently for it


def test_the_reference_is_the_policy_without_adapters(policy_folder):
    samples = sampled(Engine(load_model(policy_folder)))
    one, full = learner(policy_folder, beta=0.1), learner(policy_folder, beta=0.1, lora=None)
    kl = one.token_kl(samples)
    assert one.update(batch(samples))["kl/ref"] == pytest.approx(0, abs=1e-9)
    assert one.update(batch(samples))["kl/ref"] > 1e-6
    assert one.token_kl(samples) == kl == full.token_kl(samples)
    assert not list(one.reference.parameters())


def test_a_reloaded_learner_goes_on_bit_for_bit(policy_folder, tmp_path):
    samples = sampled(Engine(load_model(policy_folder)))
    straight, resumed = learner(policy_folder), learner(policy_folder)
    assert straight.weights().checksum == resumed.weights().checksum
    straight.update(batch(samples, 2))
    straight.save(tmp_path)
    straight.saved()
    resumed.load(tmp_path)
    assert resumed.weights().checksum == straight.weights().checksum
    assert resumed.update(batch(samples, 2)) == straight.update(batch(samples, 2))
    assert resumed.weights().checksum == straight.weights().checksum
    with pytest.raises(ValueError, match=r"has rank 4 and targets .* not those of learner.lora"):
        learner(policy_folder, lora={"rank": 2}).load(tmp_path)


def hybrid(folder) -> None:
    pass  # the policy folder is one


def qwen2(folder) -> None:
    sizes = {"vocab_size": 24, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    config = Qwen2Config(**sizes, **heads, tie_word_embeddings=True, initializer_range=0.2)
    Qwen2ForCausalLM(config).save_pretrained(folder)


def gpt2(folder) -> None:
    """Its matrices lie the other way round."""
    sizes = {"vocab_size": 24, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.2)).save_pretrained(folder)


@pytest.mark.parametrize("make", [hybrid, qwen2, gpt2], ids=lambda make: make.__name__)
def test_a_checkpoint_is_the_merged_model_and_an_adapter_of_peft(make, policy_folder, tmp_path):
    torch.manual_seed(0)
    folder = policy_folder if make is hybrid else tmp_path / "policy"
    make(folder)
    backend = make_backend("native" if make is hybrid else "transformers", str(folder), max_num_seqs=8)
    one = learner(folder)
    for _ in range(2):
        assert one.update(batch(sampled(backend)))["mismatch/logprob_abs_max"] <= 1e-5
        backend.load_weights(one.weights())
    one.save(tmp_path / "saved")
    one.saved()
    published = one.weights().arrays
    merged = load_trainable(tmp_path / "saved").state_dict()
    theirs = peft.PeftModel.from_pretrained(load_trainable(folder), tmp_path / "saved" / "adapter")
    theirs = theirs.merge_and_unload().state_dict()
    assert merged.keys() == theirs.keys() == published.keys()
    for name, x in merged.items():
        assert np.array_equal(x.numpy(), published[name]), name
        torch.testing.assert_close(theirs[name], x, rtol=0, atol=1e-6, msg=name)
    start = load_trainable(folder).state_dict()
    assert any((x - start[name]).abs().max() > 1e-3 for name, x in merged.items())
    assert json.loads((tmp_path / "saved" / "adapter" / "adapter_config.json").read_text())["r"] == 4


def test_a_bf16_policy_is_merged_as_it_is_published(policy_folder, tmp_path):
    load_model(policy_folder, torch.bfloat16).save_pretrained(tmp_path / "policy")
    one, engine = learner(tmp_path / "policy"), Engine(load_model(tmp_path / "policy"))
    one.update(batch(sampled(engine)))
    engine.load_weights(one.weights())
    assert {p.dtype for p in one.model.parameters() if p.requires_grad} == {torch.float32}
    state = engine.model.state_dict()
    assert state["model.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sharding": "fsdp", "num_ranks": 2}, "learner.sharding = 'fsdp'"),
        ({"activation_checkpointing": True}, "learner.activation_checkpointing = True"),
        ({"optimizer": "muon"}, "learner.optimizer = 'muon'"),
        ({"reference_interval": 2, "beta": 0.1}, "learner.reference_interval = 2"),
        ({"baseline": "critic", "scale_rewards": "whiten", "critic": {"trunk": "shared"}}, "trunk = 'shared'"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        LearnerConfig(lora=LORA, **changes)


def test_without_peft_the_run_is_refused_with_what_to_install(tiny, monkeypatch):
    monkeypatch.setattr(warm_start, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'deltarl\[lora\]'"):
        warm_start.check_context(tiny("learner.lora.rank=4"))


def test_the_plan_counts_adapters(tiny, policy_folder):
    line = make_plan(tiny("learner.lora.rank=4", "learner.beta=0.1")).lines[1]
    assert "adapters with gradient and AdamW" in line
    assert "reference model" not in line
