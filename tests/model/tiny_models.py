"""Small models of every kind, with weights random enough that every part of them matters to the logits."""

from typing import Any

import torch
from torch import Tensor
from transformers import KimiLinearConfig

from deltarl.model.config import hybrid_config
from deltarl.model.feedforward import RMSNorm, Router
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.kda_layer import GatedNorm, KDALayer
from deltarl.model.packing import Packing

VOCAB = 61

# What differs from the four-layer dense NoPE hybrid with the softplus gate.
VARIANTS: dict[str, dict[str, Any]] = {
    "hybrid": {},
    "attention": {"full_attention_every": 1, "num_hidden_layers": 2},
    "rope": {"full_attention_every": 2, "num_hidden_layers": 2, "rope": True},
    "bounded": {"gate_lower_bound": -5.0},
    "gdn": {"linear_attention": "gdn", "linear_num_heads": 3},
    "moe": {"num_experts": 6, "moe_intermediate_size": 32},
    "q_lora": {"full_attention_every": 2, "q_lora_rank": 12},
    "grouped_moe": {
        "num_experts": 6,
        "moe_intermediate_size": 32,
        "n_group": 3,
        "topk_group": 2,
        "n_shared_experts": 2,
    },
}


def tiny_config(variant: str = "hybrid", **changes: Any) -> KimiLinearConfig:
    """`changes` and what `hybrid_config` has no argument for (query rank, expert groups) are set on the config."""
    numbers = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "linear_num_heads": 2,
        "linear_head_dim": 8,
        "intermediate_size": 48,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 10,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
    }
    attributes = {}
    for name, value in (VARIANTS[variant] | changes).items():
        is_attribute = name in ("q_lora_rank", "n_group", "topk_group", "n_shared_experts")
        (attributes if is_attribute else numbers)[name] = value
    config = hybrid_config(**numbers)
    for name, value in attributes.items():
        setattr(config, name, value)
    return config


@torch.no_grad()
def tiny_model(variant: str = "hybrid", seed: int = 0, **changes: Any) -> HybridForCausalLM:
    """An eval-mode fp32 model; norms, gates and router biases are randomised too."""
    torch.manual_seed(seed)
    model = HybridForCausalLM(tiny_config(variant, **changes)).eval()
    for module in model.modules():
        if isinstance(module, RMSNorm | GatedNorm):
            module.weight.uniform_(0.5, 1.5)
        elif isinstance(module, Router):
            module.e_score_correction_bias.normal_(std=0.1)
        elif isinstance(module, KDALayer):
            module.dt_bias.uniform_(-4.0, 3.0)  # from hardly any decay to more than a chunk can undo
    return model


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(model: HybridForCausalLM, ids: Tensor) -> Tensor:
    """`[T, vocab]` of one sequence `[T]`, alone."""
    return model(ids.unsqueeze(0)).logits[0]


def prefill(model: HybridForCausalLM, prompts: list[Tensor], max_len: int = 96) -> tuple[Tensor, Any]:
    """Logits after each prompt and the cache, one row per prompt."""
    cache = model.new_cache(len(prompts), max_len)
    device = prompts[0].device
    packing = Packing.from_lengths([len(p) for p in prompts], device)
    return model.prefill(torch.cat(prompts), packing, cache, torch.arange(len(prompts), device=device)), cache
