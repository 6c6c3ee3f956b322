"""Value heads: silent at first, indifferent to packing, and no burden on the policy they sit on."""

import pytest
import torch
from tiny_models import tiny_model

from deltarl.model.value import HybridForValues, PolicyWithValues

LENGTHS = [5, 90, 17]


@pytest.fixture
def packed():
    torch.manual_seed(0)
    ids = torch.randint(3, 24, (sum(LENGTHS),))
    return ids, torch.tensor([0, *LENGTHS]).cumsum(0)


def awake(model):
    """With a head that says something."""
    torch.nn.init.normal_(model.head.out.weight)
    return model


def test_a_new_head_says_zero(packed):
    ids, bounds = packed
    values = HybridForValues(tiny_model().model)(ids.unsqueeze(0), bounds, torch.arange(len(ids)))
    assert values.shape == (1, len(ids))
    assert values.dtype == torch.float32
    assert not values.any()


def test_values_packed_are_those_alone(packed):
    ids, bounds = packed
    model = awake(HybridForValues(tiny_model().model))
    together = model(ids.unsqueeze(0), bounds, torch.arange(len(ids))).squeeze(0)
    assert together.std() > 0.1
    for part, values in zip(ids.split(LENGTHS), together.split(LENGTHS), strict=True):
        alone = model(part.unsqueeze(0), torch.tensor([0, len(part)]), torch.arange(len(part))).squeeze(0)
        torch.testing.assert_close(alone, values, rtol=0, atol=1e-5)


def test_a_head_on_the_policy_gives_the_values_of_its_trunk_and_leaves_the_log_probs(packed):
    ids, bounds = packed
    policy = tiny_model()
    both = awake(PolicyWithValues(policy))
    where = torch.tensor([3, 40, 100])
    inputs = {"input_ids": ids.unsqueeze(0), "cu_seqlens": bounds, "logits_to_keep": where}
    inputs["logprobs_of"] = ids[where + 1].unsqueeze(0)
    out, alone = both(**inputs), policy(**inputs)
    assert torch.equal(out.logprobs, alone.logprobs)
    assert alone.state_values is None
    own = HybridForValues(policy.model)
    own.head = both.head
    assert torch.equal(out.state_values, own(ids.unsqueeze(0), bounds, where))
