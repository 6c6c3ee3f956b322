"""Prefill and decode are the full forward pass, and a forked cache is a copy of its own."""

import pytest
import torch
from tiny_models import VARIANTS, logits_of, prefill, random_ids, tiny_model

from deltarl.model.cache import KDACache

PROMPTS = [1, 15, 16, 17, 3, 30]
STEPS = 36


@pytest.mark.parametrize("variant", VARIANTS)
def test_prefill_and_decode_give_the_logits_of_the_full_forward(variant):
    model = tiny_model(variant)
    sequences = [random_ids(n + STEPS, seed=n) for n in PROMPTS]
    first, cache = prefill(model, [ids[:n] for ids, n in zip(sequences, PROMPTS, strict=True)])
    steps = [first]
    for t in range(STEPS - 1):
        steps.append(model.decode(torch.stack([ids[n + t] for ids, n in zip(sequences, PROMPTS, strict=True)]), cache))
    got = torch.stack(steps, 1).log_softmax(-1)
    for i, (ids, n) in enumerate(zip(sequences, PROMPTS, strict=True)):
        want = logits_of(model, ids).log_softmax(-1)[n - 1 : -1]
        torch.testing.assert_close(got[i], want, rtol=0, atol=1e-5)
    assert cache.length.tolist() == [n + STEPS - 1 for n in PROMPTS]


def test_decode_from_an_empty_cache_needs_no_prefill():
    model, ids = tiny_model(), random_ids(40)
    cache = model.new_cache(2, 40)
    got = torch.stack([model.decode(token.expand(2), cache)[1] for token in ids])
    torch.testing.assert_close(got.log_softmax(-1), logits_of(model, ids).log_softmax(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", [5, 16, 21])
def test_forks_of_a_prompt_go_their_own_ways(prompt):
    model, ids = tiny_model(), random_ids(prompt)
    _, source = prefill(model, [random_ids(9, seed=1), ids])
    forks = model.new_cache(3, 64)
    forks.copy_from(source, torch.tensor([1, 1]), torch.tensor([0, 2]))
    answers = {0: random_ids(20, seed=2), 2: random_ids(20, seed=3)}
    for t in range(20):
        tokens = torch.stack([answers[0][t], torch.tensor(0), answers[2][t]])
        got = model.decode(tokens, forks).log_softmax(-1)
        for row, answer in answers.items():
            want = logits_of(model, torch.cat([ids, answer[: t + 1]]))[-1].log_softmax(-1)
            torch.testing.assert_close(got[row], want, rtol=0, atol=1e-5)


def test_decoding_a_fork_leaves_its_source_and_its_sibling_alone():
    model = tiny_model()
    _, source = prefill(model, [random_ids(21)])
    forks = model.new_cache(2, 64)
    for row in (0, 1):
        forks.copy_from(source, torch.tensor([0]), torch.tensor([row]))

    def memory(cache, row):
        layers = [x.tensors() if isinstance(x, KDACache) else (x,) for x in cache.layers]
        return [x[row].clone() for layer in layers for x in layer]

    before, sibling = memory(source, 0), memory(forks, 1)
    one = forks.view(1)
    for token in random_ids(15, seed=4):
        model.decode(token.view(1), one)
    assert all(torch.equal(a, b) for a, b in zip(memory(source, 0), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(memory(forks, 1), sibling, strict=True))
    assert forks.length.tolist() == [36, 21]


def test_the_state_of_a_kda_layer_does_not_grow():
    model = tiny_model()
    short, long = model.new_cache(1, 32), model.new_cache(1, 256)
    for a, b in zip(short.layers, long.layers, strict=True):
        if isinstance(a, KDACache) and isinstance(b, KDACache):
            assert [x.shape for x in a.tensors()] == [x.shape for x in b.tensors()]
    latent = (16 + 4) * 4  # one attention layer's bytes per token
    assert short.bytes_per_sequence(200) - short.bytes_per_sequence(100) == 100 * latent
    baseline = tiny_model("attention").new_cache(1, 32)
    assert baseline.bytes_per_sequence(200) == 2 * 200 * latent
