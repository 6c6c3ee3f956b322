"""Weights sharded over two ranks: the curve of one rank, and checkpoints that go from the one to the other and back."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from pydantic import ValidationError
from torch.distributed.tensor import DTensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from deltarl.model.checkpoint import save_model
from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.policy import is_hybrid, load_policy
from deltarl.rl.batch import TrainSample, split_batch
from deltarl.rl.config import LearnerConfig
from deltarl.rl.learner import Learner
from deltarl.rl.master_weights import masters
from deltarl.rl.sharding import whole
from deltarl.rollout.outputs import RoutedExperts

VOCAB = 24
SETTINGS = {"learning_rate": 1e-3, "warmup_steps": 0, "weight_decay": 0.01, "beta": 0.05}
CONFIG = LearnerConfig(**SETTINGS, max_tokens_per_micro_batch=60)


def moe(folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """So few tokens in a micro-batch that some of the 16 experts get none."""
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"full_attention_every": 2, "num_attention_heads": 2, "linear_num_heads": 2, "linear_head_dim": 16}
    latent = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16}
    experts = {"num_experts": 16, "num_experts_per_token": 2, "moe_intermediate_size": 16}
    config = hybrid_config(**sizes, **heads, **latent, **experts, max_position_embeddings=128, initializer_range=0.2)
    save_model(HybridForCausalLM(config).to(dtype), folder)


def moe_bf16(folder: Path) -> None:
    moe(folder, torch.bfloat16)


def tied(folder: Path) -> None:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, tie_word_embeddings=True, initializer_range=0.2))
    model.save_pretrained(folder)


CASES = {
    "moe": (moe, "fsdp"),
    "tied, offloaded": (tied, "fsdp_offload"),
    "bf16": (moe_bf16, "fsdp"),
    "bf16, offloaded": (moe_bf16, "fsdp_offload"),
}


def config_of(case: str, sharding: str = "none") -> LearnerConfig:
    # A layer of sharded weights is put together once more where it is computed again.
    own: dict = {"sharding": sharding, "activation_checkpointing": sharding == "fsdp"}
    if "bf16" in case:  # an answer is a micro-batch: the rounding of a gradient depends on what a product sums up
        own["max_tokens_per_micro_batch"] = 1
    return CONFIG.model_copy(update=own)


def answers(folder: Path) -> list[TrainSample]:
    """11 random answers with their log-probabilities as if sampled uniformly, and for a mixture of experts as if those
    had been drawn too."""
    rng = np.random.default_rng(2)
    lengths = rng.integers(3, 30, (11, 2))
    found = [
        TrainSample.whole(
            rng.integers(3, VOCAB, p).tolist(), rng.integers(3, VOCAB, c).tolist(), [-3.0] * int(c), float(rng.normal())
        )
        for p, c in lengths
    ]
    if not is_hybrid(folder / "model"):
        return found
    return [
        replace(s, routed_experts=RoutedExperts(*(drawn(rng, n) for n in (len(s.prompt_ids), len(s.logprobs) - 1))))
        for s in found
    ]


def drawn(rng: np.random.Generator, tokens: int) -> np.ndarray:
    """Two of 16 experts for every token of the one layer that has some."""
    first = rng.integers(0, 16, (tokens, 1))
    return np.stack([first, (first + rng.integers(1, 16, (tokens, 1))) % 16], -1).astype(np.uint8)


def state(learner: Learner) -> dict[str, torch.Tensor]:
    policy = learner._unwrapped()
    return {name: x.clone() for name, x in whole(policy.state_dict() | masters(policy), keep=True).items()}


def work(folder: Path, num_ranks: int, config: LearnerConfig, mine: str, theirs: str | None = None) -> dict:
    """What a rank does: two updates, a checkpoint, a third update, and a step that is left out; then the third update
    once more from the checkpoint of another number of ranks."""
    rank = int(os.environ.get("RANK", "0"))
    samples = answers(folder)
    bad = [*samples[:-1], TrainSample.whole([5, 6], [7, 8], [-3.0] * 2, float("nan"))]
    share, poisoned = split_batch(samples, num_ranks, 2)[rank], split_batch(bad, num_ranks, 1)[rank]
    learner = Learner(config, str(folder / "model"), 10, 1.0)
    found: dict = {"metrics": [learner.update(share), learner.update(share)], "checkpoint": state(learner)}
    if rank == 0:
        (folder / mine).mkdir()
    learner.save(folder / mine)
    found["metrics"].append(learner.update(share))
    found["weights"] = state(learner)
    found["logprobs"] = learner.logprobs(share[0].samples)
    found["skipped"] = learner.update(poisoned)["optim/skipped"]
    found["after"] = state(learner)
    learner.saved()
    parameters = [p.to_local() if isinstance(p, DTensor) else p for p in learner.model.parameters()]
    moments = [
        x.to_local() if isinstance(x, DTensor) else x
        for slots in learner.optimizer.optimizer.state.values()
        for name, x in slots.items()
        if name != "step"
    ]
    found["held"] = sum(p.numel() for p in parameters), sum(x.numel() for x in moments)
    if theirs:
        other = Learner(config, str(folder / "model"), 10, 1.0)
        other.load(folder / theirs)
        found["version"] = other.version
        found["resumed"] = other.update(share)
        found["resumed weights"] = state(other)
    return found


def rank_main(rank: int, port: int, root: Path) -> None:
    """One rank of two in all cases: most of the time goes into starting it."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    for case, (_, sharding) in CASES.items():
        torch.save(work(root / case, 2, config_of(case, sharding), "two", "one"), root / case / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with what one rank and each of two left in every case."""
    root = tmp_path_factory.mktemp("sharding")
    for case, (make, _) in CASES.items():
        torch.manual_seed(0)
        make(root / case / "model")
        torch.save(work(root / case, 1, config_of(case), "one"), root / case / "alone.pt")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(rank_main, (port, root), nprocs=2)
    return root


@pytest.fixture(params=CASES)
def outcomes(request, trained):
    """What one rank found, what each of two found, and the folder of both."""
    folder = trained / request.param
    alone, *both = (torch.load(folder / f"{name}.pt") for name in ("alone", "rank0", "rank1"))
    return alone, both, folder


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name, x in a.items() if not torch.equal(x, b[name])] == []


def same_but_for_rounding(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], folder: Path) -> None:
    """Each tensor's difference, beside how far training has moved it: where a gradient is nearly 0, AdamW makes steps
    of its rounding."""
    start = load_policy(folder / "model").state_dict()
    assert [name for name, x in a.items() if not (b[name] - x).norm() <= 0.01 * (x - start[name]).norm()] == []


def test_the_curve_and_the_weights_are_those_of_one_rank(outcomes):
    alone, both, folder = outcomes
    for found in both:
        for one, two in zip(alone["metrics"], found["metrics"], strict=True):
            assert two == pytest.approx(one, rel=1e-5, abs=1e-5)
        same_but_for_rounding(alone["weights"], found["weights"], folder)
    assert alone["metrics"][2]["kl/ref"] > 1e-6
    assert alone["metrics"][0].get("router/disagreement", 1) > 0.5
    assert sum(map(len, both[0]["logprobs"])) != sum(map(len, both[1]["logprobs"]))
    logprobs = [None] * len(alone["logprobs"])
    logprobs[0::2], logprobs[1::2] = both[0]["logprobs"], both[1]["logprobs"]
    for one, two in zip(alone["logprobs"], logprobs, strict=True):
        assert two == pytest.approx(one, rel=1e-5, abs=1e-5)


def test_a_rank_holds_about_half_of_weights_and_optimizer_state(outcomes):
    (alone, both, _) = outcomes
    for found in both:
        for mine, all_of_it in zip(found["held"], alone["held"], strict=True):
            assert mine < 0.55 * all_of_it
    for part in (0, 1):
        assert sum(found["held"][part] for found in both) == alone["held"][part]


def test_a_step_that_is_not_finite_is_left_out_on_every_rank(outcomes):
    alone, both, _ = outcomes
    for found in (alone, *both):
        assert found["skipped"] == 1
        same(found["weights"], found["after"])


def test_two_ranks_go_on_from_the_checkpoint_of_one(outcomes):
    alone, both, folder = outcomes
    for found in both:
        assert found["version"] == 2
        assert found["resumed"] == pytest.approx(alone["metrics"][2], rel=1e-5, abs=1e-5)
        same_but_for_rounding(alone["weights"], found["resumed weights"], folder)


def test_one_rank_goes_on_from_the_checkpoint_of_two(outcomes):
    alone, both, folder = outcomes
    learner = Learner(config_of(folder.name), str(folder / "model"), 10, 1.0)
    learner.load(folder / "two")
    same(both[0]["checkpoint"], state(learner))
    assert learner.update(split_batch(answers(folder), 1, 2)[0]) == pytest.approx(
        alone["metrics"][2], rel=1e-5, abs=1e-5
    )
    same_but_for_rounding(alone["weights"], state(learner), folder)
    assert {f.name for f in (folder / "two").iterdir()} == {f.name for f in (folder / "one").iterdir()}


def test_one_rank_has_nothing_to_shard(outcomes):
    with pytest.raises(ValidationError, match="num_ranks = 1 is one: raise num_ranks"):
        LearnerConfig(sharding="fsdp")
    with pytest.raises(ValidationError, match="use optimizer=adamw, or sharding=fsdp"):
        LearnerConfig(sharding="fsdp_offload", optimizer="muon", num_ranks=2)
    with pytest.raises(ValueError, match="'fsdp' needs several ranks"):
        Learner(CONFIG.model_copy(update={"sharding": "fsdp"}), str(outcomes[2] / "model"), 10, 1.0)
