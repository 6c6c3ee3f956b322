"""Router replay: the learner's tokens go where the sampler's went, and their log-probs agree though routers differ."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from deltarl.model.checkpoint import load_model, save_model
from deltarl.model.config import hybrid_config
from deltarl.model.feedforward import Router
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.packing import Packing
from deltarl.model.routing import UNKNOWN, Routing
from deltarl.rl.batch import PackedBatch, TrainSample, split_batch
from deltarl.rl.cli import ConfigError
from deltarl.rl.config import LearnerConfig
from deltarl.rl.config.critic import CriticConfig
from deltarl.rl.config.lora import LoRAConfig
from deltarl.rl.learner import Learner
from deltarl.rl.plan import make_plan
from deltarl.rl.warm_start import check_context
from deltarl.rollout.engine import Engine
from deltarl.rollout.outputs import RoutedExperts
from deltarl.rollout.params import SamplingParams

EXPERTS = {"num_experts": 6, "moe_intermediate_size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 64}
    heads = {"num_attention_heads": 2, "linear_num_heads": 2, "linear_head_dim": 16, "v_head_dim": 16}
    latent = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
    config = hybrid_config(**sizes, **heads, **latent, **EXPERTS, max_position_embeddings=128, initializer_range=0.2)
    path = tmp_path_factory.mktemp("moe") / "model"
    save_model(HybridForCausalLM(config), path)
    return path


def sampled(folder, bias: float = 0.0, record: bool = True) -> list[TrainSample]:
    """Answers of the policy. A correction bias of its routers changes which experts they choose and nothing else: what
    rounding does to a near-tie, only more often."""
    model, rng = load_model(folder), np.random.default_rng(0)
    for i, router in enumerate(m for m in model.modules() if isinstance(m, Router)):
        router.e_score_correction_bias.normal_(std=bias, generator=torch.Generator().manual_seed(i))
    prompts = [rng.integers(3, 24, n).tolist() for n in (4, 9, 17, 6)]
    params = SamplingParams(n=4, max_tokens=30, stop_token_ids=(2,), seed=5)
    groups = Engine(model, record_routing=record).generate(prompts, params)
    return [
        TrainSample.whole(g.prompt_token_ids, t.token_ids, t.logprobs, float(rng.normal()), t.routed_experts)
        for g in groups
        for t in g.outputs
    ]


@pytest.fixture(scope="module")
def same(folder) -> list[TrainSample]:
    return sampled(folder)


@pytest.fixture(scope="module")
def biased(folder) -> list[TrainSample]:
    return sampled(folder, bias=0.05)


@pytest.fixture
def learner(folder):
    def make(**changes) -> Learner:
        settings = {"warmup_steps": 0, "learning_rate": 1e-3, "router_replay": True} | changes
        return Learner(LearnerConfig(**settings), str(folder), 10, 1.0)

    return make


def update(one: Learner, samples, num_minibatches: int = 1, solutions=()) -> dict[str, float]:
    return one.update(split_batch(samples, 1, num_minibatches, solutions)[0])


def without_routing(samples: list[TrainSample]) -> list[TrainSample]:
    return [replace(s, routed_experts=None) for s in samples]


def test_where_routers_agree_replay_changes_nothing(learner, same):
    one, other = learner(), learner(router_replay=False)
    metrics = update(one, same)
    assert metrics["mismatch/logprob_abs_max"] <= 1e-5
    assert metrics.pop("router/disagreement") == 0
    assert update(other, without_routing(same)) == metrics
    theirs = other.model.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in one.model.state_dict().items())


SHARED = {"baseline": "critic", "scale_rewards": "whiten", "critic": CriticConfig(trunk="shared", value_clip=None)}


@pytest.mark.parametrize(
    ("changes", "num_minibatches"),
    [
        ({}, 1),
        ({"max_tokens_per_micro_batch": 50}, 1),
        ({"correction": "token_truncate", "learning_rate": 1e-2}, 2),
        ({"lora": LoRAConfig(rank=2, alpha=4)}, 1),
        (SHARED, 1),
    ],
    ids=["plain", "micro-batches", "correction", "lora", "shared critic"],
)
def test_where_routers_differ_the_log_probs_are_the_samplers_all_the_same(learner, biased, changes, num_minibatches):
    answers = [replace(s, values=[0.0] * len(s.logprobs), returns=[1.0] * len(s.logprobs)) for s in biased]
    metrics = update(learner(**changes), answers, num_minibatches)
    assert metrics["mismatch/logprob_abs_max"] <= 1e-5
    assert 0.005 < metrics["router/disagreement"] < 0.3
    alone = update(learner(**changes), without_routing(answers), num_minibatches)
    assert alone["mismatch/logprob_abs_max"] > 0.01
    assert "router/disagreement" not in alone


class Overheard(Routing):
    """Keeps what the routers would have chosen."""

    def take(self, layer, own):
        self.own = [*getattr(self, "own", []), own]
        return super().take(layer, own)


def test_disagreement_counts_the_experts_that_the_learners_routers_leave_out(learner, biased):
    one, left_out, total = learner(), 0, 0
    for s in biased:
        given = np.concatenate([*s.routed_experts, s.routed_experts.prompt[-1:]])  # nothing sees the last token's
        routing = Overheard(torch.from_numpy(given))
        ids = torch.tensor([*s.prompt_ids, *s.completion_ids])
        with torch.no_grad():
            one.model.model.packed(ids, Packing.from_lengths([len(ids)]), routing=routing)
        for layer, own in enumerate(routing.own):
            for mine, theirs in zip(own[:-1].tolist(), given[:-1, layer].tolist(), strict=True):
                left_out += len(set(theirs) - set(mine))
                total += len(theirs)
    assert update(one, biased)["router/disagreement"] == pytest.approx(left_out / total, abs=1e-12)


def test_the_routers_learn_through_the_experts_replayed(learner, biased):
    one = learner()
    before = {name: x.clone() for name, x in one.model.state_dict().items()}
    update(one, biased)
    for name, x in one.model.state_dict().items():
        if name.endswith("gate.weight"):
            assert (x - before[name]).abs().amax(1).min() > 1e-4


def test_the_reference_model_routes_itself(learner, same, biased):
    """It is the policy still, and says something else where the policy replays other experts."""
    assert update(learner(beta=0.1), same)["kl/ref"] < 1e-8
    assert update(learner(beta=0.1), biased)["kl/ref"] > 1e-6
    for samples, apart in ((same, False), (biased, True)):
        kl = [abs(x) for part in learner(beta=0.1).token_kl(samples) for x in part]
        assert (max(kl) > 1e-4) == apart


def test_values_on_the_policys_trunk_are_asked_with_the_replayed_experts(learner, biased):
    one = learner(**SHARED)
    with torch.no_grad():
        one.critic.module.out.weight.normal_()
    found = one.values(biased)
    assert found != one.values(without_routing(biased))
    answers = [replace(s, values=v, returns=v) for s, v in zip(biased, found, strict=True)]
    assert update(one, answers)["loss/value"] < 1e-10


def test_worked_solutions_route_themselves(learner, biased):
    rng = np.random.default_rng(1)
    solutions = [TrainSample.solution(rng.integers(3, 24, 5).tolist(), rng.integers(3, 24, 9).tolist())] * 2
    metrics = update(learner(ptx_weight=0.5), biased, solutions=solutions)
    alone = update(learner(ptx_weight=0.5), without_routing(biased), solutions=solutions)
    assert metrics["loss/ptx"] == alone["loss/ptx"]
    assert metrics["mismatch/logprob_abs_max"] <= 1e-5


def test_packed_experts_stand_with_their_tokens():
    def experts(begin: int, end: int) -> np.ndarray:
        return np.arange(begin, end, dtype=np.uint8).reshape(-1, 1, 2)

    samples = [
        TrainSample.whole([5, 6], [7, 8], [0.0] * 2, 1.0, RoutedExperts(experts(0, 4), experts(4, 6))),
        TrainSample.solution([9], [10]),
        TrainSample.whole([9], [10], [0.0], 1.0, RoutedExperts(experts(250, 252), experts(0, 0))),
    ]
    device = torch.device("cpu")
    packed = PackedBatch.pack(samples, device).routed_experts
    nothing = [UNKNOWN, UNKNOWN]
    assert packed.squeeze(1).tolist() == [[0, 1], [2, 3], [4, 5], *[nothing] * 3, [250, 251], nothing]
    assert PackedBatch.pack(samples[1:2], device).routed_experts is None
    assert PackedBatch.pack([], device).routed_experts is None


MOE = ("learner.router_replay=true", "model.num_experts=4")


@pytest.mark.parametrize("backend", ["transformers", "vllm"])
def test_other_backends_are_refused(tiny, backend):
    with pytest.raises(ConfigError, match=f"{backend!r} does not name them; use rollout"):
        tiny(*MOE, f"rollout.backend={backend}")


def test_models_without_experts_are_refused(tiny, folder, policy_folder):
    check_context(tiny(*MOE))
    moe = f"model.path={folder}"
    check_context(tiny("learner.router_replay=true", moe))
    with pytest.raises(ValueError, match=r"the model of model\.num_experts = 0 has no experts: leave it out"):
        check_context(tiny("learner.router_replay=true"))
    dense = tiny("learner.router_replay=true", f"model.path={policy_folder}")
    with pytest.raises(ValueError, match=f"{policy_folder} has no experts"):
        check_context(dense)
    assert any("has no experts" in told for told in make_plan(tiny("learner.router_replay=true")).refused)


def test_the_plan_tells_what_an_answer_takes(tiny):
    assert "router replay: 2 bytes a token of 1 layers x 2 experts, at most 100 an answer" in "\n".join(
        make_plan(tiny(*MOE)).lines
    )
    assert "router replay" not in "\n".join(make_plan(tiny("model.num_experts=4")).lines)
