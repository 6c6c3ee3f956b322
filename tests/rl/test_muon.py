"""Muon against Newton-Schulz in numpy, which parameters are whose, and one checkpoint of both."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.policy import load_policy
from deltarl.rl.batch import TrainSample, split_batch
from deltarl.rl.config import LearnerConfig
from deltarl.rl.learner import Learner
from deltarl.rl.master_weights import hold_masters, plain_name
from deltarl.rl.muon import MuonWithAdamW, hidden_matrices
from deltarl.rl.plan import make_plan


def newton_schulz(g: np.ndarray) -> np.ndarray:
    x = g / np.linalg.norm(g)
    x = x.T if g.shape[0] > g.shape[1] else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (1, 32)])
def test_steps_are_those_of_newton_schulz_in_numpy(shape):
    rng = np.random.default_rng(0)
    start, vector = rng.normal(size=shape), rng.normal(size=5)
    p, v = (torch.nn.Parameter(torch.tensor(x, dtype=torch.float32)) for x in (start, vector))
    optimizer = MuonWithAdamW([p], [{"params": [v], "weight_decay": 0.0}], 1e-2, 0.1, (0.9, 0.95))
    momentum, expected = np.zeros(shape), start
    for _ in range(3):
        g = rng.normal(size=shape)
        p.grad, v.grad = torch.tensor(g, dtype=torch.float32), torch.ones(5)
        before = p.detach().clone().numpy()
        optimizer.step()
        momentum = 0.95 * momentum + g  # Moonlight's; torch's is 0.05 times it, which the iteration does not notice
        update = 0.2 * np.sqrt(max(shape)) * newton_schulz(g + 0.95 * momentum)
        expected = before * (1 - 1e-2 * 0.1) - 1e-2 * update
        error = np.linalg.norm(p.detach().numpy() - expected) / np.linalg.norm(1e-2 * update)
        assert error < 0.02  # torch iterates in bf16
    np.testing.assert_allclose(v.detach().numpy(), vector - 3e-2, atol=1e-6)  # Adam's step along a constant gradient


def test_an_update_has_the_size_of_adamws():
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(64, 256))
    optimizer = MuonWithAdamW([p], [{"params": [torch.nn.Parameter(torch.zeros(1))]}], 1e-3, 0.0, (0.9, 0.95))
    p.grad = torch.randn(64, 256)
    optimizer.step()
    assert float(p.detach().square().mean().sqrt()) == pytest.approx(0.2e-3, rel=0.2)


def test_hidden_matrices_are_muons_and_nothing_else():
    sizes = {"vocab_size": 24, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"full_attention_every": 2, "num_attention_heads": 2, "linear_num_heads": 2, "linear_head_dim": 16}
    latent = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16}
    experts = {"num_experts": 4, "moe_intermediate_size": 16, "max_position_embeddings": 64}
    model = HybridForCausalLM(hybrid_config(**sizes, **heads, **latent, **experts))
    muon = hidden_matrices(model)
    adamw = {name for name, _ in model.named_parameters()} - muon
    kinds = {name.split("layers.")[-1].split(".", 1)[-1] for name in muon}
    assert {f"self_attn.{x}_proj.weight" for x in ("q", "k", "v", "o", "f_a", "f_b", "g_a", "g_b", "b")} <= kinds
    assert {
        "self_attn.kv_b_proj.weight",
        "block_sparse_moe.gate.weight",
        "block_sparse_moe.experts.3.w2.weight",
    } <= kinds
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= adamw
    for name in adamw - {"lm_head.weight", "model.embed_tokens.weight"}:
        assert "norm" in name or "conv1d" in name or name.endswith(("A_log", "dt_bias")), name
    hold_masters(model.bfloat16(), keep_rounded=True)
    assert {plain_name(name) for name in hidden_matrices(model)} == muon


@pytest.fixture
def learner(policy_folder):
    def make(**config) -> Learner:
        settings = {"warmup_steps": 0, "learning_rate": 1e-3, "weight_decay": 0.01, "optimizer": "muon"} | config
        return Learner(LearnerConfig(**settings), str(policy_folder), 10, 1.0)

    return make


def batch(num_minibatches: int = 2):
    rng = np.random.default_rng(2)
    samples = [
        TrainSample.whole(rng.integers(3, 24, 5).tolist(), rng.integers(3, 24, n).tolist(), [-3.0] * n, rng.normal())
        for n in (4, 9, 6, 12)
    ]
    return split_batch(samples, 1, num_minibatches)[0]


def test_a_reloaded_learner_goes_on_bit_for_bit(learner, tmp_path, policy_folder):
    straight, resumed = learner(), learner()
    straight.update(batch())
    straight.save(tmp_path)
    straight.saved()
    resumed.load(tmp_path)
    slots = {key.split("|")[1] for key in load_file(tmp_path / "optimizer.safetensors")}
    assert slots == {"momentum_buffer", "exp_avg", "exp_avg_sq", "step"}
    assert resumed.update(batch()) == straight.update(batch())
    assert resumed.weights().checksum == straight.weights().checksum
    start, now = load_policy(policy_folder).state_dict(), straight.model.state_dict()
    still = [name for name, x in start.items() if torch.equal(x, now[name])]
    assert still == []


def test_the_schedule_and_the_decay_reach_both(learner):
    one = learner(warmup_steps=2)
    before = {name: x.clone() for name, x in one.model.state_dict().items()}
    one.update(batch(1))  # at a rate of 0
    assert all(torch.equal(x, before[name]) for name, x in one.model.state_dict().items())
    assert {group["lr"] for group in one.optimizer.param_groups} == {0.5e-3}
    assert [g["weight_decay"] for g in one.optimizer.param_groups] == [0.01, 0.01, 0.0]


def test_the_plan_counts_one_number_a_weight_for_muon(tiny):
    line = make_plan(tiny("learner.optimizer=muon", "model.hidden_size=512", "model.intermediate_size=2048")).lines[1]
    size = {name: float(line.split(f"{name} ")[1].split(",")[0].rstrip(")")) for name in ("weights", "Muon", "AdamW")}
    assert 0.5 * size["weights"] < size["Muon"] < size["weights"]
    assert size["Muon"] + size["AdamW"] / 2 == pytest.approx(size["weights"], rel=0.02)
