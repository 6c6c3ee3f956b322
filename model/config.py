"""Model configurations: transformers' own `KimiLinearConfig`, built from the few numbers that matter and checked."""

from typing import Any, Literal

from transformers import KimiLinearConfig

LinearAttention = Literal["kda", "gdn"]


def hybrid_config(
    *,
    vocab_size: int,
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    linear_num_heads: int,
    linear_head_dim: int,
    intermediate_size: int,
    kv_lora_rank: int,
    qk_nope_head_dim: int,
    qk_rope_head_dim: int,
    v_head_dim: int,
    max_position_embeddings: int,
    full_attention_every: int = 4,
    rope: bool = False,
    linear_attention: LinearAttention = "kda",
    gate_lower_bound: float | None = None,
    num_experts: int = 0,
    num_experts_per_token: int = 2,
    moe_intermediate_size: int = 0,
    initializer_range: float = 0.02,
    pad_token_id: int = 0,
    bos_token_id: int = 1,
    eos_token_id: int = 2,
) -> KimiLinearConfig:
    """A `kimi_linear` configuration with every `full_attention_every`-th layer MLA and the others KDA.

    Args:
        full_attention_every: 4 gives the paper's 3:1 hybrid; 1 gives the all-attention baseline of the same class.
        rope: rotate the `qk_rope_head_dim` part of the attention keys (False, the released model, is NoPE).
        linear_attention: "kda" forgets by a gate of each key channel, "gdn" (Gated DeltaNet, arXiv 2412.06464) by one
            of each head; all else is the same. transformers' kimi_linear knows the first alone.
        gate_lower_bound: bounded forget gate, e.g. -5.0; None is the released model's softplus gate.
        num_experts: 0 for dense feed-forward layers; otherwise every layer but the first is a mixture of experts.

    Raises:
        ValueError: if the numbers do not describe a model.
    """
    if full_attention_every < 1:
        raise ValueError(f"full_attention_every must be at least 1, got {full_attention_every}")
    if rope and qk_rope_head_dim % 2:
        raise ValueError(f"rope rotates pairs of channels: qk_rope_head_dim must be even, got {qk_rope_head_dim}")
    layers = range(1, num_hidden_layers + 1)  # numbered from 1 in kimi_linear checkpoints
    linear_attn_config: dict[str, Any] = {
        "full_attn_layers": [i for i in layers if i % full_attention_every == 0],
        "kda_layers": [i for i in layers if i % full_attention_every],
        "num_heads": linear_num_heads,
        "head_dim": linear_head_dim,
        "short_conv_kernel_size": 4,
        "gate_lower_bound": gate_lower_bound,
    }
    if linear_attention == "gdn":
        linear_attn_config["gate"] = "head"
    # Keys of the released config that the class keeps without declaring them.
    more: dict[str, Any] = {"mla_use_nope": not rope, "linear_attn_config": linear_attn_config}
    if num_experts:
        more |= {
            "first_k_dense_replace": 1,
            "num_local_experts": num_experts,
            "num_experts_per_tok": num_experts_per_token,
            "moe_intermediate_size": moe_intermediate_size,
        }
    else:
        more["mlp_layer_types"] = ["dense"] * num_hidden_layers
    return KimiLinearConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_attention_heads,
        intermediate_size=intermediate_size,
        kv_lora_rank=kv_lora_rank,
        qk_nope_head_dim=qk_nope_head_dim,
        qk_rope_head_dim=qk_rope_head_dim,
        v_head_dim=v_head_dim,
        max_position_embeddings=max_position_embeddings,
        initializer_range=initializer_range,
        pad_token_id=pad_token_id,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        **more,
    )


def gate_lower_bound(config: KimiLinearConfig) -> float | None:
    """The forget gate's bound, or None for the softplus gate."""
    return (getattr(config, "linear_attn_config", None) or {}).get("gate_lower_bound")


def gate_per_head(config: KimiLinearConfig) -> bool:
    """Whether a head's key channels share one forget gate (Gated DeltaNet), which no released checkpoint's do."""
    return (getattr(config, "linear_attn_config", None) or {}).get("gate") == "head"


def layer_kinds(config: KimiLinearConfig) -> list[str]:
    """ "linear_attention" or "full_attention" for each layer."""
    assert config.layer_types is not None  # filled in by the config itself
    return config.layer_types


def mlp_kinds(config: KimiLinearConfig) -> list[str]:
    """ "dense" or "sparse" (mixture of experts) for each layer."""
    assert config.mlp_layer_types is not None  # filled in by the config itself
    return config.mlp_layer_types


def uses_rope(config: KimiLinearConfig) -> bool:
    """Whether attention rotates its shared key part; checkpoints that do not say are NoPE, as the released one is."""
    return not getattr(config, "mla_use_nope", True)
