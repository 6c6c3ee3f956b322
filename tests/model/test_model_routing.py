"""Experts that are given: taken whatever the router says, weighted by its scores, with the gradient of that."""

import pytest
import torch
from tiny_models import VOCAB, random_ids, tiny_model
from torch import Tensor

from deltarl.model.feedforward import Router, SparseMoE
from deltarl.model.packing import Packing
from deltarl.model.routing import UNKNOWN, Routing, routing_shape

VARIANTS = ["moe", "grouped_moe"]
LENGTHS = [5, 40, 17]


@torch.no_grad()
def own_experts(model, ids: Tensor, lengths: list[int] = LENGTHS) -> Tensor:
    """`[T, layers, k]` that the model's routers choose."""
    routing = Routing()
    model.model.packed(ids, Packing.from_lengths(lengths), routing=routing)
    return routing.taken


def learned(model, ids: Tensor, experts: Tensor | None) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """Log-probabilities of the tokens, how many experts the routers would not have chosen, and the gradient."""
    model.zero_grad()
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0)
    where = torch.arange(len(ids) - 1)
    out = model(ids[None], cu_seqlens=bounds, logits_to_keep=where, logprobs_of=ids[None, 1:], routed_experts=experts)
    out.logprobs.sum().backward()
    return out.logprobs.detach(), out.routed_otherwise, {n: p.grad.clone() for n, p in model.named_parameters()}


@torch.no_grad()
def moved(model, scale: float = 0.05) -> None:
    """Gives routers other weights, so that they would choose otherwise."""
    generator = torch.Generator().manual_seed(1)
    for router in (m for m in model.modules() if isinstance(m, Router)):
        router.weight += scale * torch.randn(router.weight.shape, generator=generator)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_routers_own_choice_given_changes_no_bit(variant):
    model, ids = tiny_model(variant), random_ids(sum(LENGTHS))
    experts = own_experts(model, ids)
    assert experts.shape[1:] == routing_shape(model.config) == (3, 2)
    assert len(experts.unique()) == 6
    logprobs, none, gradient = learned(model, ids, None)
    replayed, otherwise, same_gradient = learned(model, ids, experts.to(torch.int16))
    assert none is None
    assert otherwise == 0
    assert torch.equal(replayed, logprobs)
    assert all(torch.equal(x, same_gradient[name]) for name, x in gradient.items())


def plain_moe(layer: SparseMoE, x: Tensor, experts: Tensor) -> Tensor:
    """Token by token: the shared expert, and those given by their renormalised sigmoid scores."""
    out = []
    for token, chosen in zip(x, experts.tolist(), strict=True):
        scores = torch.stack([(layer.gate.weight[e] @ token).sigmoid() for e in chosen])
        weights = scores / scores.sum() * layer.gate.scaling
        mixed = sum(w * layer.experts[e](token) for w, e in zip(weights, chosen, strict=True))
        out.append(layer.shared_experts(token) + mixed)
    return torch.stack(out)


@pytest.mark.parametrize("variant", VARIANTS)
def test_given_experts_are_those_of_a_plain_reference_and_so_is_the_gradient(variant):
    model = tiny_model(variant)
    layer = model.model.layers[2].block_sparse_moe
    assert layer.gate.renormalize
    x = torch.randn(30, 32, generator=torch.Generator().manual_seed(0))
    experts = layer.gate(x)[1]
    moved(model, 0.3)
    assert (layer.gate(x)[1] != experts).any()
    given = torch.full((30, 3, 2), UNKNOWN)
    given[:, 1] = experts  # layer 2 is the second that has experts
    routing = Routing(given)
    got, want = layer(x, routing), plain_moe(layer, x, experts)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    own = [set(chosen) for chosen in layer.gate(x)[1].tolist()]
    assert routing.otherwise == sum(e not in own[t] for t in range(30) for e in experts[t].tolist()) > 0
    assert (layer(x) - want).abs().max() > 1e-3
    for given_by in (got, want):
        layer.zero_grad()
        given_by.square().sum().backward()
        gradient = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
        if given_by is got:
            first = gradient
    assert all(x.abs().max() > 0 for x in first["gate.weight"])
    for name, x in gradient.items():
        torch.testing.assert_close(first[name], x, rtol=1e-4, atol=1e-5, msg=name)


def test_the_gradient_reaches_the_router_rows_of_given_experts_alone():
    layer = tiny_model("moe").model.layers[1].block_sparse_moe
    layer(torch.randn(30, 32), Routing(torch.tensor([1, 4]).expand(30, 3, 2))).square().sum().backward()
    assert layer.gate.weight.grad.abs().amax(1).gt(0).tolist() == [False, True, False, False, True, False]


def test_other_weights_replay_the_experts_of_the_old_ones():
    model, ids = tiny_model("moe"), random_ids(sum(LENGTHS))
    experts = own_experts(model, ids)
    moved(model)
    changed = own_experts(model, ids)
    assert 0 < (changed != experts).float().mean() < 0.5
    routing = Routing(experts)
    with torch.no_grad():
        model.model.packed(ids, Packing.from_lengths(LENGTHS), routing=routing)
    assert torch.equal(routing.taken, experts)
    assert learned(model, ids, experts)[1] > 0


def test_tokens_without_given_experts_are_routed_by_the_router():
    model, ids = tiny_model("moe"), random_ids(sum(LENGTHS))
    own = own_experts(model, ids)
    given = own.clone()
    given[5:45] = UNKNOWN  # the second sequence
    given[:5] = (given[:5] + 1) % 6
    routing = Routing(given)
    with torch.no_grad():
        model.model.packed(ids, Packing.from_lengths(LENGTHS), routing=routing)
    assert torch.equal(routing.taken[:5], given[:5])
    assert torch.equal(routing.taken[5:], own[5:])


@pytest.mark.parametrize(("variant", "shape"), [("hybrid", (9, 3, 2)), ("moe", (9, 2, 2)), ("moe", (8, 3, 2))])
def test_experts_of_another_shape_are_refused(variant, shape):
    wanted = (9, *((3, 2) if variant == "moe" else (0, 0)))
    with pytest.raises(ValueError, match=rf"routed_experts must be \({', '.join(map(str, wanted))}\), got"):
        tiny_model(variant)(random_ids(1, 9), routed_experts=torch.zeros(shape, dtype=torch.long))


def test_a_model_without_experts_has_none_to_record():
    with pytest.raises(ValueError, match="the model has no experts"):
        tiny_model().new_cache(1, 32, record_routing=True)


def test_idle_rows_of_a_captured_step_write_to_nobodys_page():
    model = tiny_model("moe")
    cache = model.new_cache(2, 64, num_pages=3, record_routing=True)
    cache.block_table[0, 0] = 1
    table, position = cache.block_table[:, :2], torch.tensor([3, -1])
    cache.note_experts(table, position, torch.full((2, 3, 2), 5))
    assert cache.routed_experts[1].flatten(1).sum(1).nonzero().flatten().tolist() == [3]
    assert cache.routed_experts[2].sum() == 0


def test_prompts_and_decoded_tokens_are_noted_where_their_latents_are():
    model = tiny_model("moe")
    a, b = random_ids(35), random_ids(20, seed=1)
    cache = model.new_cache(2, 64, record_routing=True)
    model.prefill(torch.cat([a, b]), Packing.from_lengths([35, 20]), cache, torch.tensor([1, 0]))
    more = random_ids(2, 3, seed=2) % VOCAB
    for token in more.T:
        model.decode(token, cache)
    for row, ids in ((0, torch.cat([b, more[0]])), (1, torch.cat([a, more[1]]))):
        found = cache.experts_of(row, len(ids))
        assert torch.equal(found.long(), own_experts(model, ids, [len(ids)]))
