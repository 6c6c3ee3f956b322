"""The same function and the same files as transformers' own KimiLinearForCausalLM."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import random_ids, tiny_config, tiny_model
from transformers import KimiLinearForCausalLM

from deltarl.model.checkpoint import load_model, save_model
from deltarl.model.hybrid import HybridForCausalLM

# Those transformers implements: it has neither rotary attention nor the bounded gate.
COMMON = ["hybrid", "attention", "moe", "q_lora", "grouped_moe"]


@torch.no_grad()
def assert_same_logits(ours: HybridForCausalLM, theirs: KimiLinearForCausalLM) -> None:
    ids = random_ids(2, 37)
    want, got = theirs.eval()(ids, use_cache=False).logits, ours(ids).logits
    assert want.std() > 0.1  # a model whose logits are all alike would agree with anything
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", COMMON)
def test_transformers_reads_what_we_write(tmp_path, variant):
    ours = tiny_model(variant)
    save_model(ours, tmp_path)
    theirs, info = KimiLinearForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], kind
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("variant", COMMON)
def test_we_read_what_transformers_writes(tmp_path, variant):
    torch.manual_seed(1)
    theirs = KimiLinearForCausalLM(tiny_config(variant))
    theirs.save_pretrained(tmp_path)
    assert_same_logits(load_model(tmp_path), theirs)


def released_names(hidden: int = 32, inner: int = 16, heads: int = 3) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released 48B checkpoint, at the size of `tiny_model("moe")`."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (61, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (61, hidden),
    }
    kda = {
        **{f"{x}_proj.weight": (inner, hidden) for x in "qkv"},
        **{f"{x}_conv1d.weight": (inner, 1, 4) for x in "qkv"},
        "A_log": (1, 1, 2, 1),
        "dt_bias": (inner,),
        "f_a_proj.weight": (8, hidden),
        "f_b_proj.weight": (inner, 8),
        "g_a_proj.weight": (8, hidden),
        "g_b_proj.weight": (inner, 8),
        "b_proj.weight": (2, hidden),
        "o_norm.weight": (8,),
        "o_proj.weight": (hidden, inner),
    }
    mla = {
        "q_proj.weight": (heads * 12, hidden),
        "kv_a_proj_with_mqa.weight": (16 + 4, hidden),
        "kv_a_layernorm.weight": (16,),
        "kv_b_proj.weight": (heads * 18, 16),
        "o_proj.weight": (hidden, heads * 10),
    }
    dense = {"gate_proj.weight": (48, hidden), "up_proj.weight": (48, hidden), "down_proj.weight": (hidden, 48)}
    expert = {"w1.weight": (32, hidden), "w2.weight": (hidden, 32), "w3.weight": (32, hidden)}
    shared = {"gate_proj.weight": (32, hidden), "up_proj.weight": (32, hidden), "down_proj.weight": (hidden, 32)}
    moe = {"gate.weight": (6, hidden), "gate.e_score_correction_bias": (6,)}
    moe |= {f"experts.{e}.{name}": shape for e in range(6) for name, shape in expert.items()}
    moe |= {f"shared_experts.{name}": shape for name, shape in shared.items()}
    for i in range(4):
        layer = f"model.layers.{i}."
        shapes |= {layer + f"{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        shapes |= {layer + f"self_attn.{name}": shape for name, shape in (mla if i == 3 else kda).items()}
        prefix, feed_forward = ("block_sparse_moe.", moe) if i else ("mlp.", dense)
        shapes |= {layer + prefix + name: shape for name, shape in feed_forward.items()}
    return shapes


def test_checkpoints_have_the_released_names_and_shapes(tmp_path):
    save_model(tiny_model("moe"), tmp_path)
    stored = {name: tuple(x.shape) for name, x in load_file(tmp_path / "model.safetensors").items()}
    assert stored == released_names()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["KimiLinearForCausalLM"]
    assert config["model_type"] == "kimi_linear"
    assert config["linear_attn_config"]["full_attn_layers"] == [4]
