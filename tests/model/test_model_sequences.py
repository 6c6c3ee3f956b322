"""Logits depend on a sequence's own earlier tokens, and on nothing else."""

from copy import copy

import pytest
import torch
from tiny_models import VARIANTS, VOCAB, logits_of, random_ids, tiny_model

from deltarl.model.mla_layer import MLALayer
from deltarl.model.packing import Packing

LENGTHS = [5, 33, 1, 16, 40]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def moved_to(packing: Packing, position: torch.Tensor) -> Packing:
    """The same packing with other positions."""
    moved = copy(packing)
    moved.position = position
    return moved


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_equals_alone(variant):
    model = tiny_model(variant)
    sequences = [random_ids(n, seed=n) for n in LENGTHS]
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0)
    with torch.no_grad():
        packed = model(torch.cat(sequences).unsqueeze(0), cu_seqlens=cu_seqlens).logits[0]
    for ids, got in zip(sequences, packed.split(LENGTHS), strict=True):
        torch.testing.assert_close(got, logits_of(model, ids), **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_alone(variant, side):
    model = tiny_model(variant)
    ids, mask = torch.full((len(LENGTHS), 44), VOCAB - 1), torch.zeros(len(LENGTHS), 44, dtype=torch.int64)
    rows = [slice(44 - n, 44) if side == "left" else slice(n) for n in LENGTHS]
    for i, (n, row) in enumerate(zip(LENGTHS, rows, strict=True)):
        ids[i, row], mask[i, row] = random_ids(n, seed=n), 1
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
    for i, row in enumerate(rows):
        torch.testing.assert_close(logits[i, row], logits_of(model, ids[i, row]), **CLOSE)
        assert (logits[i][mask[i] == 0] == 0).all()


def test_packed_gradients_are_the_sum_of_those_alone():
    model = tiny_model("hybrid")
    sequences = [random_ids(n, seed=n) for n in LENGTHS]
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(*batches, **options):
        losses = [model(ids.unsqueeze(0), **options).logits.logsumexp(-1).sum() for ids in batches]
        return torch.autograd.grad(sum(losses), parameters)

    packed = gradients(torch.cat(sequences), cu_seqlens=torch.tensor([0, *LENGTHS]).cumsum(0))
    for got, want in zip(packed, gradients(*sequences), strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


def assert_causal_to_the_bit(variant: str) -> None:
    model = tiny_model(variant)
    ids = random_ids(50)
    before = logits_of(model, ids)
    for t in (1, 15, 16, 31, 40, 49):
        for new in (3, 17, 50):
            changed = ids.clone()
            changed[t] = new if ids[t] != new else 4
            after = logits_of(model, changed)
            assert torch.equal(before[:t], after[:t]), t
            assert not torch.equal(before[t:], after[t:])


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "moe" not in name])
def test_nothing_before_a_changed_token_changes_by_a_bit(variant):
    assert_causal_to_the_bit(variant)


@pytest.mark.parametrize("variant", ["moe", "grouped_moe"])
def test_nothing_before_a_token_changes_by_a_bit_when_it_goes_to_another_expert(variant):
    assert_causal_to_the_bit(variant)


def attention(rope: bool) -> tuple[MLALayer, torch.Tensor, Packing]:
    layer = tiny_model("attention", rope=rope).model.layers[0].self_attn
    assert isinstance(layer, MLALayer)
    return layer, torch.randn(20, 32, generator=torch.Generator().manual_seed(0)), Packing.from_lengths([20])


@torch.no_grad()
def test_rotary_attention_depends_on_distances_and_only_on_them():
    layer, x, packing = attention(rope=True)
    here = layer(x, packing)
    moved = layer(x, moved_to(packing, packing.position + 100))
    torch.testing.assert_close(moved, here, rtol=1e-4, atol=1e-5)
    stretched = layer(x, moved_to(packing, packing.position * 2))
    assert (stretched - here).abs().max() > 1e-3


@torch.no_grad()
def test_attention_without_rotation_knows_no_positions():
    layer, x, packing = attention(rope=False)
    assert torch.equal(layer(x, packing), layer(x, moved_to(packing, packing.position * 3)))
    rotary, *_ = attention(rope=True)
    rotary.load_state_dict(layer.state_dict())
    assert (rotary(x, packing) - layer(x, packing)).abs().max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter(variant):
    model = tiny_model(variant).train()
    ids = random_ids(8, 40)
    loss = model(ids, labels=ids).loss
    torch.testing.assert_close(
        loss, torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    )
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_logits_can_be_had_for_some_positions_only():
    model, ids = tiny_model(), random_ids(2, 20)
    with torch.no_grad():
        some = model(ids, logits_to_keep=torch.tensor([3, 19])).logits
        torch.testing.assert_close(some, model(ids).logits[:, [3, 19]], **CLOSE)
