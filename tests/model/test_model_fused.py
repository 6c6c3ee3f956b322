"""A model decodes with matrices joined from its parameters: always those it has."""

import copy

import pytest
import torch
from tiny_models import logits_of, prefill, random_ids, tiny_model

from deltarl.model.fused import side_by_side
from deltarl.model.weights import WeightUpdate
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams


def test_what_is_joined_again_stays_where_it_is_and_outside_any_gradient():
    a, b = (torch.nn.Parameter(torch.randn(n, 3)) for n in (2, 4))
    with torch.inference_mode():
        first = side_by_side([a, b], None)
    with torch.no_grad():
        a.mul_(2)
    again = side_by_side([a, b], first)
    assert again.data_ptr() == first.data_ptr()
    assert torch.equal(again, torch.cat([a, b]))
    assert not again.requires_grad
    assert side_by_side([a.double(), b.double()], first).dtype == torch.float64


def decoded(model, ids, steps=3):
    _, cache = prefill(model, [ids[:-steps]])
    return torch.cat([model.decode(ids[-steps + i].view(1), cache) for i in range(steps)])


@pytest.mark.parametrize("changed", ["q_proj", "b_proj", "v_conv1d"])
def test_decode_follows_a_change_and_a_copy_has_its_own(changed):
    model, ids = tiny_model(), random_ids(12)
    before = decoded(model, ids)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        getattr(twin.model.layers[0].self_attn, changed).weight.mul_(3)
    after = decoded(twin, ids)
    torch.testing.assert_close(after, logits_of(twin, ids)[-3:], rtol=0, atol=1e-4)
    assert (after - before).abs().max() > 1e-3
    assert torch.equal(decoded(model, ids), before)


def engine_of(model):
    return Engine(model, max_num_seqs=2, max_model_len=32)


def sampled(engine):
    return engine.generate([[5, 6, 7, 8]], SamplingParams(max_tokens=5, seed=1))[0].outputs[0].logprobs


def test_an_engine_samples_from_what_a_fused_optimizer_left():
    model = tiny_model()
    engine = engine_of(model)
    before = sampled(engine)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    torch.optim.AdamW(model.parameters(), lr=0.3, fused=True).step()
    fresh = tiny_model()
    fresh.load_state_dict(model.state_dict())
    assert sampled(engine) == sampled(engine_of(fresh)) != before


def test_new_weights_reach_running_samples():
    model, other = tiny_model(), tiny_model()
    with torch.no_grad():
        other.model.layers[0].self_attn.v_proj.weight.mul_(-3)
    found = []
    for update in (WeightUpdate.of(model, 1), WeightUpdate.of(other, 1)):
        engine = engine_of(copy.deepcopy(model))
        engine.add_request("a", [5, 6, 7], SamplingParams(max_tokens=6, seed=1))
        for _ in range(3):
            assert not engine.step()
        engine.load_weights(update)
        found.append(engine.run(100)[0].outputs[0].logprobs)
    assert found[0][:3] == found[1][:3]
    assert found[0][3:] != found[1][3:]
