"""Several learner ranks do what one does: same weights, same metrics, also when their shares are uneven."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from deltarl.model.checkpoint import load_model
from deltarl.model.weights import WeightUpdate
from deltarl.rl.batch import TrainSample, split_batch
from deltarl.rl.config import LearnerConfig
from deltarl.rl.config.critic import CriticConfig
from deltarl.rl.learner import Learner
from deltarl.rl.master_weights import masters
from deltarl.rl.presets import PRESETS
from deltarl.rl.sharding import whole
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams

SETTINGS = {"learning_rate": 1e-3, "warmup_steps": 0, "num_threads": 1, "max_tokens_per_micro_batch": 120}
# Each answer is a micro-batch, on one rank as on two: the rounding of a gradient depends on what a product sums up.
BF16 = SETTINGS | {"max_tokens_per_micro_batch": 1}
CONFIGS = {
    "grpo": LearnerConfig(**SETTINGS),
    "losses of whole answers": LearnerConfig(
        **SETTINGS,
        **PRESETS["gspo"]["learner"],
        correction="sequence_mask",
        beta=0.1,
        reference_interval=1,
        ptx_weight=0.2,
    ),
    "own critic": LearnerConfig(**SETTINGS, **PRESETS["ppo"]["learner"]),
    "shared critic": LearnerConfig(**SETTINGS, **PRESETS["ppo"]["learner"], critic=CriticConfig(trunk="shared")),
    "muon": LearnerConfig(**SETTINGS, optimizer="muon"),
    "lora": LearnerConfig(**SETTINGS, lora={"rank": 4}, beta=0.1),
    "bf16, ptx": LearnerConfig(**BF16, beta=0.1, reference_interval=1, ptx_weight=0.2),
    "bf16, own critic": LearnerConfig(**BF16, **PRESETS["ppo"]["learner"]),
    "bf16, shared critic": LearnerConfig(**BF16, **PRESETS["ppo"]["learner"], critic=CriticConfig(trunk="shared")),
}


@pytest.fixture(scope="module")
def samples(policy_folder) -> list[TrainSample]:
    """15 answers: two ranks get 8 and 7, of different length, in different numbers of micro-batches."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 24, n).tolist() for n in (3, 30, 12)]
    params = SamplingParams(n=5, max_tokens=40, stop_token_ids=(2,), seed=1)
    groups = Engine(load_model(policy_folder)).generate(prompts, params)
    answers = [(group.prompt_token_ids, t) for group in groups for t in group.outputs]
    found = [TrainSample.whole(prompt, t.token_ids, t.logprobs, float(rng.normal())) for prompt, t in answers]
    returns = [rng.normal(size=len(s.completion_ids)).tolist() for s in found]
    return [replace(s, values=[0.0] * len(r), returns=r) for s, r in zip(found, returns, strict=True)]


def train(config: LearnerConfig, model: str, share, folder: Path) -> None:
    """What a rank does: two updates, then its metrics and weights, also the critic's, to disk."""
    learner = Learner(config, model, total_updates=2, temperature=1.0)
    metrics = [learner.update(share), learner.update(share)]
    policy = learner._unwrapped()
    weights = whole(policy.state_dict(), keep=True)
    published = learner.weights()
    assert (published is None) == (not learner.accelerator.is_main_process)
    assert published is None or published.checksum == WeightUpdate.of_state(weights, 2).checksum
    weights |= whole(masters(policy), keep=True)
    if learner.critic is not None:
        critic = whole(learner.critic.module.state_dict() | masters(learner.critic.module), keep=True)
        weights |= {f"critic.{name}": x for name, x in critic.items()}
    torch.save((metrics, weights), folder / f"rank{os.environ.get('RANK', '0')}.pt")


# The first of them sharded is in test_learner_sharding.py, and LoRA sharded is refused.
CASES = [(name, "none") for name in CONFIGS] + [(name, "fsdp") for name in CONFIGS if name not in ("grpo", "lora")]


def rank_main(rank: int, port: int, models: list[str], shares, root: Path) -> None:
    """One rank of two, which train all cases one after the other: most of the time goes into starting it."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    for name, sharding in CASES:
        config = CONFIGS[name].model_copy(update={"sharding": sharding})
        train(config, models[name.startswith("bf16")], shares[rank], root / name / sharding)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained(policy_folder, bf16_folder, samples, tmp_path_factory) -> Path:
    """A folder with what one rank and each of two left in every case."""
    root, models = tmp_path_factory.mktemp("ranks"), [str(policy_folder), str(bf16_folder)]
    solutions = [TrainSample.solution(s.prompt_ids, s.completion_ids) for s in samples[:3]]  # one rank gets none once
    for name, config in CONFIGS.items():
        for folder in ("alone", "none", "fsdp"):
            (root / name / folder).mkdir(parents=True)
        alone = split_batch(samples, 1, 2, solutions)[0]
        train(config, models[name.startswith("bf16")], alone, root / name / "alone")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(rank_main, (port, models, split_batch(samples, 2, 2, solutions), root), nprocs=2)
    return root


@pytest.fixture(params=CASES, ids=[f"{name}, {sharding}" for name, sharding in CASES])
def outcomes(request, trained):
    """(metrics, weights) of one rank alone, and of each of two."""
    name, sharding = request.param
    return [
        torch.load(trained / name / path) for path in ("alone/rank0.pt", f"{sharding}/rank0.pt", f"{sharding}/rank1.pt")
    ]


def test_shares_are_uneven(samples):
    first, second = split_batch(samples, 2, 1)
    assert len(first[0].samples) != len(second[0].samples)
    assert sum(map(len, first[0].samples)) != sum(map(len, second[0].samples))


def test_ranks_hold_the_very_same_weights(outcomes):
    _, (_, first), (_, second) = outcomes
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_two_ranks_end_with_the_weights_of_one(outcomes, policy_folder, request):
    (_, alone), (_, shared), _ = outcomes
    start = load_model(policy_folder).state_dict()
    assert max(float((alone[name] - x).abs().max()) for name, x in start.items()) > 1e-3
    for name, x in alone.items():
        if "muon" in request.node.name:
            # torch iterates in bf16, where gradients that differ by rounding may differ by a whole step.
            assert (shared[name] - x).norm() <= 0.02 * (x - start[name]).norm(), name
        else:
            torch.testing.assert_close(shared[name], x, rtol=0, atol=1e-6, msg=name)


def test_two_ranks_report_the_metrics_of_one(outcomes, request):
    (alone, _), (first, _), (second, _) = outcomes
    assert first == second
    for one, two in zip(alone, first, strict=True):
        tolerance = 1e-2 if "muon" in request.node.name else 1e-5
        assert two == pytest.approx(one, rel=tolerance, abs=tolerance)
    assert alone[0]["mismatch/logprob_abs_max"] <= (0.2 if "bf16" in request.node.name else 1e-5)  # sampled in fp32
    assert alone[1]["kl/old"] > 1e-8  # the second update learned from the answers of older weights
