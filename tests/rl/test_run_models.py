"""Short runs of other models than the recipe's: with experts, of transformers, sampled by vLLM."""

import os
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from deltarl.model.tokenizer import byte_tokenizer
from deltarl.rl.cli import load_config
from deltarl.rl.config import RunConfig
from deltarl.rl.jsonl import read_jsonl
from deltarl.rl.run_sft import warm_up
from deltarl.rl.train import train

TINY = Path(__file__).parent / "tiny.yaml"


def rows(config: RunConfig) -> list[dict]:
    return read_jsonl(config.run_dir / "metrics.jsonl")


def train_from(folder: Path, tmp_path: Path, *overrides: str) -> list[dict]:
    """The rows of a run of two steps that starts from the checkpoint in `folder`."""
    options = ["in_process=true", "steps=2", "sft=null", f"model={{path: {folder}}}", "rollout.num_workers=1"]
    config = load_config(TINY, [f"output_dir={tmp_path / 'runs'}", *options, *overrides])
    train(config)
    assert [row["step"] for row in rows(config)] == [0, 1, 2]
    assert (config.run_dir / "checkpoints" / "step_000002" / "config.json").is_file()
    return rows(config)


def test_router_replay_takes_the_experts_from_samplers_to_learner(tmp_path):
    moe = ("model.num_experts=4", "model.num_hidden_layers=3", "model.moe_intermediate_size=16")
    options = ("in_process=true", "sft=null", "steps=2", "learner.router_replay=true")
    run = load_config(TINY, [f"output_dir={tmp_path}", *options, *moe])
    train(run)
    for row in rows(run)[1:]:
        assert row["router/disagreement"] == 0
        assert row["mismatch/logprob_abs_max"] <= 1e-5


def test_a_model_of_transformers_is_sampled_and_trained(tmp_path):
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, initializer_range=0.2))
    model.save_pretrained(tmp_path / "qwen2")
    tokenizer.save_pretrained(tmp_path / "qwen2")
    shaped = "reward.functions=[{name: short, function: " + f"'{tmp_path / 'short.py'}:short'" + "}]"
    (tmp_path / "short.py").write_text(
        "def short(completions, **columns):\n    return [sum(map(str.isascii, c)) for c in completions]\n"
    )
    found = train_from(tmp_path / "qwen2", tmp_path, "rollout.backend=transformers", shaped)
    for row in found[1:]:
        assert row["mismatch/logprob_abs_max"] <= 1e-5
        assert row["kl/old"] < 1e-8
        assert row["optim/grad_norm"] > 0
    with pytest.raises(
        ValueError, match=r"rollout\.backend = 'native' does not sample this model.*=transformers, or vllm"
    ):
        train_from(tmp_path / "qwen2", tmp_path / "again", "rollout.backend=native")
    with pytest.raises(ValueError, match=r"critic.* puts a value head on our hybrid, and .*qwen2 is another model"):
        train_from(tmp_path / "qwen2", tmp_path / "ppo", "rollout.backend=transformers", "algorithm=ppo")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not os.environ.get("DELTARL_VLLM_PYTHON"), reason="no interpreter with vLLM: see docs/VLLM.md")
def test_vllm_samples_for_a_run(tmp_path):
    config = load_config(TINY, [f"output_dir={tmp_path}", "in_process=true"])
    warm_up(config)
    found = train_from(config.run_dir / "initial", tmp_path, "rollout.backend=vllm")
    for row in found[1:]:
        assert row["mismatch/logprob_abs_max"] <= 1e-4
        assert row["kl/old"] < 1e-8
