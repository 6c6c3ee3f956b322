"""The model, prompts and answer lengths that the sides of `rollout.py` share."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch

from deltarl.model.checkpoint import save_model
from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM

VOCAB = 272
# hidden, layers, heads, head dim, feed-forward, rank of the latents
SIZES = {"1M": (128, 4, 4, 32, 352, 64), "10M": (320, 8, 5, 64, 896, 128)}


@dataclass(frozen=True)
class Workload:
    """`prompts` prompts of 20 to 80 tokens, `samples` answers each, as long as `limits` says: 32 to 256 tokens."""

    prompts: list[list[int]]
    limits: list[int]
    samples: int

    @classmethod
    def random(cls, prompts: int, samples: int) -> "Workload":
        rng = random.Random(0)
        texts = [[rng.randrange(3, 259) for _ in range(rng.randrange(20, 81))] for _ in range(prompts)]
        return cls(texts, [rng.randrange(32, 257) for _ in texts], samples)

    @property
    def tokens(self) -> int:
        """That are asked for."""
        return self.samples * sum(self.limits)


def make_model(size: str, full_attention_every: int = 4, context: int = 1024) -> HybridForCausalLM:
    """With random weights, the same every time."""
    hidden, layers, heads, dim, inner, rank = SIZES[size]
    torch.manual_seed(0)
    config = hybrid_config(
        vocab_size=VOCAB,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        linear_num_heads=heads,
        linear_head_dim=dim,
        intermediate_size=inner,
        kv_lora_rank=rank,
        qk_nope_head_dim=dim,
        qk_rope_head_dim=16,
        v_head_dim=dim,
        max_position_embeddings=context,
        full_attention_every=full_attention_every,
    )
    return HybridForCausalLM(config).eval()


def save(size: str, folder: Path) -> None:
    """A checkpoint for the sides that load one."""
    save_model(make_model(size), folder)
