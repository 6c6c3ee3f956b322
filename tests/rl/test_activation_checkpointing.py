"""Layers that are computed again for the backward pass: the same numbers to the bit, from less memory."""

from dataclasses import replace

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from deltarl.model.checkpoint import load_model
from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.rl.batch import TrainSample, split_batch
from deltarl.rl.config import LearnerConfig
from deltarl.rl.learner import Learner
from deltarl.rl.presets import PRESETS

PPO = PRESETS["ppo"]["learner"]


def samples() -> list[TrainSample]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in (3, 20, 41, 9):
        prompt, answer = torch.randint(3, 24, (2, length), generator=generator).tolist()
        sample = TrainSample.whole(prompt, answer, [-3.0] * length, 0.5 - length % 2)
        found.append(replace(sample, values=[0.0] * length, returns=sample.advantages))
    return found


def updated(folder, **config) -> tuple[dict, dict]:
    learner = Learner(LearnerConfig(warmup_steps=0, learning_rate=1e-2, **config), str(folder), 10, 1.0)
    metrics = [learner.update(split_batch(samples(), 1, 2)[0]) for _ in range(2)]
    critic = {} if learner.critic is None else learner.critic.module.state_dict()
    return metrics, {k: x.clone() for k, x in (learner._unwrapped().state_dict() | critic).items()}


@pytest.fixture
def qwen2_folder(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
    Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, initializer_range=0.2)).save_pretrained(tmp_path / "qwen2")
    return tmp_path / "qwen2"


@pytest.mark.parametrize(
    ("folder", "config"),
    [
        ("policy_folder", {}),
        ("bf16_folder", {"beta": 0.1}),
        ("policy_folder", PPO),
        ("policy_folder", PPO | {"critic": {"trunk": "shared"}}),
        ("qwen2_folder", {}),
    ],
    ids=["fp32", "bf16 over masters", "critic", "critic on the policy's trunk", "of transformers"],
)
def test_the_update_is_the_same_to_the_bit(request, folder, config):
    path = request.getfixturevalue(folder)
    (metrics, weights), (metrics_again, weights_again) = (
        updated(path, activation_checkpointing=again, **config) for again in (False, True)
    )
    assert metrics == metrics_again
    assert all(torch.equal(x, weights_again[name]) for name, x in weights.items())
    start = load_model(path).state_dict() if "qwen2" not in folder else {}
    assert not start or any((weights[name].float() - x.float()).abs().max() > 1e-3 for name, x in start.items())


def test_a_mixture_of_experts_routes_again_as_it_did(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 24}
    heads = {"num_attention_heads": 2, "linear_num_heads": 2, "linear_head_dim": 8, "full_attention_every": 3}
    latent = {"kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
    experts = {"num_experts": 4, "moe_intermediate_size": 16, "max_position_embeddings": 128}
    HybridForCausalLM(hybrid_config(**sizes, **heads, **latent, **experts)).save_pretrained(tmp_path)
    (metrics, weights), (metrics_again, weights_again) = (
        updated(tmp_path, activation_checkpointing=again) for again in (False, True)
    )
    assert metrics == metrics_again
    assert all(torch.equal(x, weights_again[name]) for name, x in weights.items())


def test_less_stays_for_the_backward_pass(policy_folder):
    ids, kept = torch.randint(3, 24, (1, 128)), []
    for again in (False, True):
        model = load_model(policy_folder)
        model.model.activation_checkpointing = again
        held: dict[int, int] = {}

        def hold(x: torch.Tensor, held=held) -> torch.Tensor:
            held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda x: x):
            model(input_ids=ids)
        kept.append(sum(held.values()))
    assert kept[1] < 0.5 * kept[0]
