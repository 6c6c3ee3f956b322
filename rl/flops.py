"""Arithmetic of a model, from its configuration: what curves against compute have on their axis."""

import torch
from transformers import KimiLinearConfig

from deltarl.kernels.chunk import CHUNK_SIZE
from deltarl.model.config import layer_kinds
from deltarl.model.hybrid import HybridForCausalLM


def forward_flops(config: KimiLinearConfig, length: float) -> float:
    """Of one token in the forward pass of sequences of `length` tokens, on average; a multiplication and its addition
    are two. A backward pass takes twice as many.

    2 for each weight of a matrix the token meets (the vocabulary's at the end, not the look-up at the beginning; of
    experts those chosen); in full attention 2 H (d_qk + d_v) for each of the length / 2 tokens it sees on average; in
    a KDA layer 6 K V for reading the state twice and writing it once, and 2 C (3 K + 2 V) within its chunk of C, per
    head. Norms, gates and convolutions are left out.
    """
    kinds = layer_kinds(config)
    full, linear = kinds.count("full_attention"), kinds.count("linear_attention")
    assert config.qk_rope_head_dim is not None  # only the class allows it
    assert config.v_head_dim is not None
    seen = config.num_attention_heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim) * length
    dim = config.linear_head_dim
    mixed = config.linear_num_heads * (6 * dim * dim + 2 * CHUNK_SIZE * 5 * dim)
    return 2.0 * _matrix_weights(config) + full * seen + linear * mixed


def _matrix_weights(config: KimiLinearConfig) -> float:
    with torch.device("meta"):
        model = HybridForCausalLM(config)
    chosen = config.num_experts_per_tok or 0
    total = 0.0
    for name, x in model.named_parameters():
        if x.dim() == 2 and "embed_tokens" not in name:
            met = chosen / config.num_local_experts if ".experts." in name else 1.0
            total += met * x.numel()
    return total
