"""The model and the answers that both sides of `learner.py` learn from."""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from deltarl.model.checkpoint import save_model
from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.tokenizer import byte_tokenizer

# hidden, layers, heads, head dim, feed-forward, rank of the latents, vocabulary
SIZES = {
    "1M": (128, 4, 4, 32, 352, 64, 272),
    "10M": (320, 8, 5, 64, 896, 128, 272),
    "370M": (1024, 24, 8, 128, 2816, 512, 32768),
}


@dataclass(frozen=True)
class Answers:
    """`prompts` groups of `generations` answers of random tokens, from a tenth of `max_tokens` to all of it, to prompts
    of 20 to 80; every answer has a reward of its own."""

    size: str
    prompts: int
    generations: int
    max_tokens: int
    steps: int
    """Measured steps, on the same answers; one more is done first and not counted."""
    micro_batch: int
    """Answers that TRL takes through the model at once; tokens on our side, whose passes are packed."""
    device: str
    learning_rate: float = 1e-5

    def rows(self) -> list[tuple[list[int], list[int], float]]:
        """Prompt, answer and reward."""
        rng = random.Random(0)
        prompts = [_tokens(rng, rng.randrange(20, 81)) for _ in range(self.prompts)]
        lengths = range(max(1, self.max_tokens // 10), self.max_tokens + 1)
        return [(p, _tokens(rng, rng.choice(lengths)), rng.random()) for p in prompts for _ in range(self.generations)]

    @property
    def tokens(self) -> int:
        """Of prompts and answers, without padding: what one step goes through."""
        return sum(len(prompt) + len(answer) for prompt, answer, _ in self.rows())

    def save(self, folder: Path) -> None:
        (folder / "answers.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> "Answers":
        return cls(**json.loads((folder / "answers.json").read_text()))


@dataclass(frozen=True)
class Measured:
    """Of one side: seconds of each measured step, CPU seconds of all, peak memory in bytes beyond what it started a
    step with (host without a GPU, else the GPU), and the gradient norm of the first step."""

    seconds: list[float]
    cpu_seconds: float
    peak_bytes: int
    grad_norm: float


def make_model(size: str, folder: Path, dtype: torch.dtype) -> int:
    """Writes model and tokenizer; returns the parameters that a token is multiplied with."""
    hidden, layers, heads, dim, inner, rank, vocab = SIZES[size]
    torch.manual_seed(0)
    config = hybrid_config(
        vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        linear_num_heads=heads, linear_head_dim=dim, intermediate_size=inner, kv_lora_rank=rank, qk_nope_head_dim=dim,
        qk_rope_head_dim=16, v_head_dim=dim, max_position_embeddings=4096, full_attention_every=4,
    )  # fmt: skip
    model = HybridForCausalLM(config)
    count = sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)
    for name, p in model.named_parameters():
        if not name.endswith(("A_log", "dt_bias")):
            p.data = p.data.to(dtype)
    save_model(model, folder)
    byte_tokenizer().save_pretrained(folder)
    return count


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, 259) for _ in range(count)]
