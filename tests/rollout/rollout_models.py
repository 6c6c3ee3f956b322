"""Small policies whose distributions are neither flat nor certain, and what the learner would compute for them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.kda_layer import KDALayer
from deltarl.rollout.engine import Engine
from deltarl.rollout.outputs import RequestOutput

VOCAB = 37
CONTEXT = 128


@torch.no_grad()
def policy(kind: str = "hybrid", seed: int = 0, layers: int = 2) -> HybridForCausalLM:
    """fp32, eval mode.

    Args:
        kind: "hybrid", "forgetful" (the same with decays beyond e^-60 in a chunk), "rope" (the same with that), or
            "attention", all layers; "moe" alone is the hybrid with experts, after another kind that one with experts.
    """
    torch.manual_seed(seed)
    config = hybrid_config(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        linear_num_heads=2,
        linear_head_dim=8,
        intermediate_size=48,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        max_position_embeddings=CONTEXT,
        full_attention_every=1 if "attention" in kind else 2,
        rope="rope" in kind,
        num_experts=4 if "moe" in kind else 0,
        moe_intermediate_size=24,
        initializer_range=0.2,
    )
    model = HybridForCausalLM(config).eval()
    for module in model.modules():
        if isinstance(module, KDALayer):
            module.dt_bias.uniform_(-5.0, 3.0 if kind == "forgetful" else -1.0)
    return model


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


@dataclass(frozen=True)
class Trajectory:
    """An answer with its prompt."""

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    sampling_logprobs: list[float]
    weight_versions: list[int]
    finish_reason: str

    @classmethod
    def of(cls, request: RequestOutput) -> "list[Trajectory]":
        return [
            cls(
                request.prompt_token_ids,
                t.token_ids,
                t.logprobs,
                t.sampling_logprobs,
                t.weight_versions,
                t.finish_reason,
            )
            for t in request.outputs
        ]


class GroupEngine(Engine):
    """Gives trajectories, a list for each prompt."""

    def generate(self, prompts, params):
        return [Trajectory.of(request) for request in super().generate(prompts, params)]


@torch.no_grad()
def scored(model: HybridForCausalLM, trajectory: Trajectory, temperature: float = 1.0) -> Tensor:
    """Log-probabilities `[completion, vocab]` of a full forward pass where the completion's tokens were drawn."""
    ids = torch.tensor([trajectory.prompt_ids + trajectory.completion_ids])
    logits = model(ids).logits[0, len(trajectory.prompt_ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def largest_gap(model: HybridForCausalLM, trajectory: Trajectory, temperature: float = 1.0) -> float:
    """Largest |difference| between the sampler's log-probabilities and the full forward pass's."""
    token = torch.tensor(trajectory.completion_ids).unsqueeze(-1)
    want = scored(model, trajectory, temperature).gather(-1, token).squeeze(-1)
    return float((torch.tensor(trajectory.logprobs) - want).abs().max())
