"""The model gives the log-probabilities of tokens without giving logits."""

import pytest
import torch
from tiny_models import random_ids, tiny_model

TEMPERATURE = 0.8


def from_logits(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logp = torch.log_softmax(logits.float() / TEMPERATURE, -1)
    return logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), -(logp.exp() * logp).sum(-1)


def test_logprobs_are_those_of_the_logits_to_the_bit():
    model, ids, tokens = tiny_model(), random_ids(2, 40), random_ids(2, 30, seed=1)
    keep = torch.arange(5, 35)
    with torch.no_grad():
        out = model(ids, logits_to_keep=keep, logprobs_of=tokens, temperature=TEMPERATURE)
        logprobs, entropy = from_logits(model(ids, logits_to_keep=keep).logits, tokens)
    assert out.logits is None
    assert torch.equal(out.logprobs, logprobs)
    assert torch.equal(out.entropy, entropy)


def test_gradients_are_those_through_the_logits():
    model, ids, tokens = tiny_model().train(), random_ids(2, 40), random_ids(2, 40, seed=1)
    gradients = []
    for results in (
        model(ids, logprobs_of=tokens, temperature=TEMPERATURE).to_tuple(),
        from_logits(model(ids).logits, tokens),
    ):
        model.zero_grad()
        (results[0].mean() - 0.3 * results[1].mean()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[1].items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_arguments_that_do_not_fit_are_refused():
    model, ids = tiny_model(), random_ids(2, 20)
    with pytest.raises(ValueError, match=r"logprobs_of must be \(2, 3\), got \(2, 20\)"):
        model(ids, logits_to_keep=torch.tensor([1, 2, 3]), logprobs_of=ids)
    with pytest.raises(ValueError, match="pass one of them"):
        model(ids, logprobs_of=ids, labels=ids)
