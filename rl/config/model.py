"""The policy: a checkpoint, or the sizes of a model to make."""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from deltarl.model.config import LinearAttention
from deltarl.rl.section import Section


class ModelConfig(Section):
    path: str | None = None
    """Checkpoint folder with its tokenizer: kimi_linear, or any causal language model of HuggingFace with
    rollout.backend transformers or vllm. Without it, a random model of the size below is made."""
    tokenizer_extra_tokens: list[str] = Field(default=["\\boxed{"])
    """Strings that are one token each in the byte-level tokenizer of a model made here."""
    hidden_size: PositiveInt = 96
    num_hidden_layers: PositiveInt = 4
    full_attention_every: PositiveInt = 4
    """Every n-th layer is full attention (MLA), the others KDA: 4 is the paper's 3:1, 1 the all-attention baseline."""
    num_attention_heads: PositiveInt = 3
    linear_num_heads: PositiveInt = 3
    linear_head_dim: PositiveInt = 32
    intermediate_size: PositiveInt = 192
    kv_lora_rank: PositiveInt = 32
    qk_nope_head_dim: PositiveInt = 24
    qk_rope_head_dim: PositiveInt = 8
    v_head_dim: PositiveInt = 32
    rope: bool = False
    """Rotate the rope part of the attention keys; the paper's model does not (NoPE)."""
    linear_attention: LinearAttention = "kda"
    """The layers that are not full attention: kda forgets by key channel, gdn (Gated DeltaNet) by head."""
    gate_lower_bound: float | None = Field(default=None, lt=0)
    """Bounded forget gate, e.g. -5; null is the softplus gate of the released model."""
    num_experts: NonNegativeInt = 0
    """Mixture of experts in every layer but the first; 0 is dense."""
    num_experts_per_token: PositiveInt = 2
    moe_intermediate_size: PositiveInt = 64
    initializer_range: PositiveFloat = 0.02
    max_position_embeddings: PositiveInt = 512
    """Longest prompt and answer together, in tokens."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights of a model made here, which it computes in; a checkpoint keeps its own. Learning is in fp32."""

    @property
    def sizes(self) -> dict[str, Any]:
        """The arguments of `deltarl.model.config.hybrid_config` that are given here."""
        return self.model_dump(exclude={"path", "tokenizer_extra_tokens", "dtype"})
