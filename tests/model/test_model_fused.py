"""Matrices kept side by side follow the parameters they come from."""

import copy

import pytest
import torch
from tiny_models import random_ids, tiny_model

from deltarl.model.fused import SideBySide
from deltarl.rollout.engine import Engine
from deltarl.rollout.params import SamplingParams


def parts():
    return [torch.nn.Parameter(torch.randn(n, 3)) for n in (2, 4)]


def test_it_follows_every_kind_of_change_in_the_same_memory():
    a, b = parts()
    joined = SideBySide()
    with torch.inference_mode():
        first = joined.of([a, b])
        assert joined.of([a, b]) is first
    changes = (
        lambda: a.mul_(2),
        lambda: torch.optim.SGD([b], lr=1.0).step(),
        lambda: torch.nn.ParameterList([a, b]).load_state_dict({"0": torch.ones(2, 3), "1": torch.zeros(4, 3)}),
    )
    b.grad = torch.ones_like(b)
    for change in changes:
        with torch.no_grad():
            change()
        with torch.inference_mode():
            now = joined.of([a, b])
        assert torch.equal(now, torch.cat([a, b]))
        assert now.data_ptr() == first.data_ptr()


def test_a_change_that_is_not_counted_is_seen_after_forgetting_and_outside_inference_mode():
    a, b = parts()
    joined = SideBySide()
    with torch.inference_mode():
        joined.of([a, b])
    a.grad = torch.ones_like(a)
    torch.optim.AdamW([a], lr=0.1, fused=True).step()  # does not count
    with torch.no_grad():
        assert torch.equal(joined.of([a, b]), torch.cat([a, b]))
    joined.forget()
    with torch.inference_mode():
        assert torch.equal(joined.of([a, b]), torch.cat([a, b]))


def test_an_engine_samples_from_what_a_fused_optimizer_left():
    model = tiny_model()
    prompt, params = [[5, 6, 7, 8]], SamplingParams(max_tokens=3, seed=1)
    engine = Engine(model, max_num_seqs=2, max_model_len=32)
    before = engine.generate(prompt, params)[0].outputs[0].logprobs
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    torch.optim.AdamW(model.parameters(), lr=0.3, fused=True).step()
    after = engine.generate(prompt, params)[0].outputs[0].logprobs
    assert (
        after
        == Engine(copy.deepcopy(model), max_num_seqs=2, max_model_len=32)
        .generate(prompt, params)[0]
        .outputs[0]
        .logprobs
    )
    assert after != before


def test_gradients_reach_the_parameters_also_after_sampling():
    a, b = parts()
    joined = SideBySide()
    with torch.inference_mode():
        joined.of([a, b])
    joined.of([a, b]).sum().backward()
    assert a.grad is not None
    assert b.grad is not None


@pytest.mark.parametrize("changed", ["k_proj", "f_a_proj", "v_conv1d"])
def test_a_model_and_its_copy_see_their_own_weights(changed):
    model = tiny_model()
    ids = random_ids(9).unsqueeze(0)
    with torch.inference_mode():
        before = model(ids).logits
    twin = copy.deepcopy(model)
    with torch.no_grad():
        getattr(twin.model.layers[0].self_attn, changed).weight.mul_(3)
        want = twin(ids).logits
    with torch.enable_grad():
        trained = twin(ids).logits
    assert torch.equal(want, trained)
    assert not torch.equal(want, before)
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, before)
