"""What both sides of `vs_trl.py` are given: one model, one list of prompts, one reward, one way to write times down."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from deltarl.rl.cli import load_config
from deltarl.rl.data import EncodedPrompt, encode_prompts, from_problems
from deltarl.rl.problems import generate
from deltarl.rl.warm_start import load_tokenizer, new_model

RECIPE = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
PROBLEMS = [{"family": "brackets", "level": 1}]  # not the recipe's, which may change: prompts of 10 tokens


TRL_SETTINGS: dict[str, Any] = {
    # The objective and the optimizer of both sides.
    "temperature": 1.0,
    "beta": 0.0,
    "loss_type": "dapo",
    "scale_rewards": "group",
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch_fused",
    "weight_decay": 0.0,
    "shuffle_dataset": False,
    # What saves time.
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
"""Of a `GRPOConfig`, whatever is measured."""


@dataclass(frozen=True)
class Workload:
    """One GRPO step is `prompts * generations` answers of exactly `max_tokens` tokens and one AdamW step on them."""

    prompts: int
    generations: int
    max_tokens: int
    steps: int
    """Measured steps; one more is done first, to warm up, and not counted."""
    learning_rate: float = 3e-4
    epsilon: float = 0.2
    max_grad_norm: float = 1.0
    seed: int = 0

    def save(self, folder: Path) -> None:
        (folder / "workload.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> "Workload":
        return cls(**json.loads((folder / "workload.json").read_text()))

    def problems(self, tokenizer: PreTrainedTokenizerBase) -> list[EncodedPrompt]:
        """The prompts of the warm-up step, of the first measured step, and so on."""
        examples = from_problems(generate(PROBLEMS, "train", self.prompts * (self.steps + 1), self.seed))
        return encode_prompts(
            examples, tokenizer, template=None, system_prompt=None, max_prompt_tokens=64, on_long="error"
        )


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step; what is not sampling (reward, loss, gradient, optimizer, weight copy) is the update."""

    step: float
    cpu: float
    """CPU seconds of the step, which hardly depend on what else the machine does."""
    sampling: float
    tokens: int
    """Completion tokens sampled."""

    @property
    def update(self) -> float:
        return self.step - self.sampling

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.sampling


def make_model(folder: Path, seed: int) -> None:
    """Writes the quickstart's model, with random weights, and its tokenizer into `folder`."""
    config = load_config(RECIPE).model
    tokenizer = load_tokenizer(config)
    new_model(config, len(tokenizer), seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def digit_share(completions: Sequence[str]) -> list[float]:
    """A reward that costs nothing: the share of digits in the text."""
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in completions]
