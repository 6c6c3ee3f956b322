"""The engine on a GPU: CUDA graphs change nothing; in batch-invariant mode the learner has the sampler's numbers."""

from dataclasses import replace

import pytest
import torch
from rollout_models import Trajectory

from deltarl.kernels.batch_invariant import set_batch_invariant
from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.weights import WeightUpdate
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICE = torch.device("cuda")
VOCAB = 9000  # more than one block of the online log-probs
PARAMS = SamplingParams(n=6, max_tokens=90, seed=3)
KINDS = {
    "hybrid": {},
    "bounded": {"gate_lower_bound": -5.0},
    "attention": {"full_attention_every": 1},
    "rope": {"rope": True},
    "moe": {"num_experts": 8, "moe_intermediate_size": 128},
    "odd vocabulary": {"vocab_size": VOCAB + 1},  # rows of logits begin at any distance from a multiple of 16 bytes
}


def policy(kind="hybrid", dtype=torch.bfloat16, seed=0):
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "linear_num_heads": 4,
        "linear_head_dim": 64,
        "intermediate_size": 512,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "max_position_embeddings": 2048,
        "full_attention_every": 4,
        "initializer_range": 0.08,
    }
    return HybridForCausalLM(hybrid_config(**(sizes | KINDS[kind]))).to(DEVICE, dtype).eval()


def prompts(lengths=(5, 17, 700, 64, 33, 1, 250)):
    gen = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCAB, (n,), generator=gen).tolist() for n in lengths]


def learner_logprobs(model, trajectories, temperature=1.0):
    """Log-probs of all answers from one packed forward pass with gradients, as the learner computes them."""
    sequences = [t.prompt_ids + t.completion_ids for t in trajectories]
    ids = torch.tensor([token for s in sequences for token in s], device=DEVICE)
    bounds = torch.tensor([0, *map(len, sequences)], device=DEVICE).cumsum(0)
    predictor, target = [], []
    for s, t, begin in zip(sequences, trajectories, bounds.tolist(), strict=False):
        predictor += range(begin + len(t.prompt_ids) - 1, begin + len(s) - 1)
        target += t.completion_ids
    out = model(
        ids.unsqueeze(0),
        cu_seqlens=bounds,
        logits_to_keep=torch.tensor(predictor, device=DEVICE),
        logprobs_of=torch.tensor([target], device=DEVICE),
        temperature=temperature,
    )
    assert out.logprobs.requires_grad
    return out.logprobs[0].detach()


def answers(model, params=PARAMS, **options):
    engine = Engine(model, **({"max_num_seqs": 24, "max_prefill_tokens": 256, "max_model_len": 1024} | options))
    return engine, [t for request in engine.generate(prompts(), params) for t in Trajectory.of(request)]


@pytest.fixture
def invariant():
    set_batch_invariant(True)
    yield
    set_batch_invariant(False)


@pytest.mark.parametrize("kind", KINDS)
def test_in_batch_invariant_mode_the_learner_has_the_samplers_bits(invariant, kind):
    model = policy(kind)
    _, trajectories = answers(model)
    want = torch.tensor([x for t in trajectories for x in t.logprobs], device=DEVICE)
    assert torch.equal(learner_logprobs(model, trajectories), want)
    assert float(want.std()) > 0.1
    # Nor do the tokens depend on how they were batched.
    assert [t.completion_ids for t in answers(model, max_num_seqs=3)[1]] == [t.completion_ids for t in trajectories]


def test_in_batch_invariant_mode_also_after_preemption(invariant):
    model = policy()
    engine, trajectories = answers(model, num_pages=80)
    assert engine.stats().preemptions
    want = torch.tensor([x for t in trajectories for x in t.logprobs], device=DEVICE)
    assert torch.equal(learner_logprobs(model, trajectories), want)


def test_in_batch_invariant_mode_also_at_another_temperature(invariant):
    model = policy()
    _, trajectories = answers(model, replace(PARAMS, temperature=0.6))
    want = torch.tensor([x for t in trajectories for x in t.logprobs], device=DEVICE)
    assert torch.equal(learner_logprobs(model, trajectories, 0.6), want)


def test_in_batch_invariant_mode_gradients_are_those_of_the_plain_mode():
    model = policy()
    _, trajectories = answers(model)
    gradients = {}
    for on in (False, True):
        set_batch_invariant(on)
        try:
            with torch.enable_grad():
                model.zero_grad()
                sequences = [t.prompt_ids + t.completion_ids for t in trajectories[:12]]
                ids = torch.tensor([token for s in sequences for token in s], device=DEVICE)
                bounds = torch.tensor([0, *map(len, sequences)], device=DEVICE).cumsum(0)
                model(ids.unsqueeze(0), cu_seqlens=bounds, labels=ids.unsqueeze(0)).loss.backward()
        finally:
            set_batch_invariant(False)
        gradients[on] = {name: p.grad.float() for name, p in model.named_parameters()}
    for name, want in gradients[False].items():
        error = float((gradients[True][name] - want).norm() / want.norm())
        assert error < 0.05, name


@pytest.mark.parametrize("kind", ["hybrid", "attention"])
def test_a_graph_gives_what_the_model_gives_without(kind, monkeypatch):
    model = policy(kind, torch.float32)
    engine, with_graphs = answers(model)
    assert engine._runner._graphs is not None
    monkeypatch.setattr(HybridForCausalLM, "decodes_without_waiting", False)
    engine, without = answers(model)
    assert engine._runner._graphs is None
    same = sum(a.completion_ids == b.completion_ids for a, b in zip(with_graphs, without, strict=True))
    assert same >= 0.95 * len(without)  # rows are filled up to other numbers, and products then rounded otherwise
    gap = learner_logprobs(model, with_graphs) - torch.tensor([x for t in with_graphs for x in t.logprobs]).to(DEVICE)
    assert float(gap.abs().max()) < 1e-4


def test_new_weights_reach_the_graphs_without_a_prefill(invariant, monkeypatch):
    model, other = policy(seed=0), policy(seed=1)
    engine = Engine(model, max_num_seqs=8, max_model_len=512)
    engine.add_request("a", prompts()[0], SamplingParams(max_tokens=40, seed=1))
    for _ in range(10):
        assert not engine.step()
    engine.load_weights(WeightUpdate.of(other, 1))
    (request,) = engine.run(1000)
    answer = request.outputs[0]
    assert answer.weight_versions == [0] * 10 + [1] * 30
    # The state is the old weights', but what reads it is new: the same as without graphs.
    monkeypatch.setattr(HybridForCausalLM, "decodes_without_waiting", False)
    engine = Engine(policy(seed=0), max_num_seqs=8, max_model_len=512)
    engine.add_request("a", prompts()[0], SamplingParams(max_tokens=40, seed=1))
    for _ in range(10):
        engine.step()
    engine.load_weights(WeightUpdate.of(other, 1))
    assert engine.run(1000)[0].outputs[0].token_ids == answer.token_ids


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(n=4, max_tokens=30, seed=1, temperature=0.0),
        SamplingParams(n=4, max_tokens=30, seed=1, temperature=0.7, stop_token_ids=(5, 6, 7)),
        SamplingParams(n=4, max_tokens=30, seed=1, top_k=20, top_p=0.9),
        SamplingParams(n=4, max_tokens=30, seed=1, repetition_penalty=1.2, logprobs=3),
    ],
)
def test_a_captured_draw_is_the_draw(invariant, params, monkeypatch):
    model = policy()
    with_graphs = answers(model, [replace(params, max_tokens=8 + 5 * i) for i in range(len(prompts()))])[1]
    monkeypatch.setattr(HybridForCausalLM, "decodes_without_waiting", False)
    without = answers(model, [replace(params, max_tokens=8 + 5 * i) for i in range(len(prompts()))])[1]
    assert with_graphs == without


def test_a_captured_draw_follows_what_later_requests_ask_for(invariant, monkeypatch):
    asked = [(), (5,), (5, 6, 7, 8, 9, 10), (11,)]

    def outcome():
        engine = Engine(policy(), max_num_seqs=8, max_model_len=512)
        return [
            engine.generate(prompts((5, 17, 64)), SamplingParams(n=2, max_tokens=20, seed=1, stop_token_ids=ids))
            for ids in asked
        ]

    with_graphs = outcome()
    monkeypatch.setattr(HybridForCausalLM, "decodes_without_waiting", False)
    for ours, theirs in zip(with_graphs, outcome(), strict=True):
        assert [Trajectory.of(request) for request in ours] == [Trajectory.of(request) for request in theirs]


def test_bf16_without_the_mode_stays_within_the_bound():
    model = policy()
    _, trajectories = answers(model)
    gap = learner_logprobs(model, trajectories).double()
    gap -= torch.tensor([x for t in trajectories for x in t.logprobs], device=DEVICE, dtype=torch.float64)
    assert float((gap.exp() - 1 - gap).mean()) < 1e-4
