"""Prefill and decode are the full forward pass, and a forked cache is a copy of its own."""

import itertools

import pytest
import torch
from tiny_models import VARIANTS, logits_of, prefill, random_ids, tiny_model

from deltarl.model.cache import PAGE_SIZE, KDACache
from deltarl.model.packing import Packing

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


def forked(model, prompts, row):
    """Of `prompts`, that in `row` in rows 0 and 2 of a cache whose row 1 stands idle; and the prompts' cache."""
    _, source = prefill(model, prompts)
    state = source.export_row(row, len(prompts[row]))
    forks = model.new_cache(3, 64)
    for target in (0, 2):
        forks.import_row(target, state)
    return source, forks


@pytest.mark.parametrize("prompt", [5, 16, 21])
def test_forks_of_a_prompt_go_their_own_ways(prompt):
    model, ids = tiny_model(), random_ids(prompt)
    _, forks = forked(model, [random_ids(9, seed=1), ids], 1)
    answers = {0: random_ids(20, seed=2), 2: random_ids(20, seed=3)}
    for t in range(20):
        tokens = torch.stack([answers[0][t], torch.tensor(0), answers[2][t]])
        got = model.decode(tokens, forks).log_softmax(-1)
        for row, answer in answers.items():
            want = logits_of(model, torch.cat([ids, answer[: t + 1]]))[-1].log_softmax(-1)
            torch.testing.assert_close(got[row], want, rtol=0, atol=1e-5)


def same_state(a, b):
    return a.length == b.length and all(
        torch.equal(x, y) for x, y in zip((*a.recurrent, *a.latents), (*b.recurrent, *b.latents), strict=True)
    )


def test_decoding_a_fork_leaves_its_source_and_its_sibling_alone():
    model = tiny_model()
    source, forks = forked(model, [random_ids(21)], 0)
    before = source.export_row(0, 21)
    assert same_state(forks.export_row(2, 21), before)
    one = forks.view(1)
    for token in random_ids(15, seed=4):
        model.decode(token.view(1), one)
    assert same_state(source.export_row(0, 21), before)
    assert same_state(forks.export_row(2, 21), before)
    assert forks.length.tolist() == [36, 0, 21]


def test_rows_may_share_pages_and_a_row_be_copied_within_a_cache():
    model, ids = tiny_model(), random_ids(48)
    _, alone = prefill(model, [ids[:40]])
    cache = model.new_cache(2, 96, num_pages=6)
    cache.block_table[0] = torch.tensor([4, 1, 0])
    model.prefill(ids[:40], Packing.from_lengths([40]), cache, torch.tensor([0]))
    cache.copy_rows(torch.tensor([0]), torch.tensor([1]))
    cache.block_table[1] = torch.tensor([4, 2, 0])  # the full page is shared, the other copied
    cache.copy_pages(torch.tensor([1]), torch.tensor([2]))
    for token in ids[40:]:
        want = model.decode(token.view(1), alone)
        got = model.decode(torch.stack([torch.tensor(3), token]), cache, longest=48)
        torch.testing.assert_close(got[1], want[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cuts", [[16, 48], [32], [16, 32, 48, 64]])
def test_a_prompt_in_pieces_is_the_prompt_at_once(variant, cuts):
    model = tiny_model(variant)
    long, short = random_ids(70, seed=1), random_ids(20, seed=2)
    want, whole = prefill(model, [long, short])
    cache = model.new_cache(2, 96)
    bounds = [0, *cuts, 70]
    for begin, end in itertools.pairwise(bounds):
        pieces, rows, start = [long[begin:end]], [0], [begin]
        if begin == 0:  # another sequence has its first piece in the same batch, and its second in the next
            pieces, rows, start = [*pieces, short[:16]], [0, 1], [0, 0]
        elif begin == bounds[1]:
            pieces, rows, start = [*pieces, short[16:]], [0, 1], [begin, 16]
        packing = Packing.from_lengths([len(p) for p in pieces], start=start)
        got = model.prefill(torch.cat(pieces), packing, cache, torch.tensor(rows))
        if begin == bounds[1]:
            torch.testing.assert_close(got[1].log_softmax(-1), want[1].log_softmax(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(got[0].log_softmax(-1), want[0].log_softmax(-1), rtol=0, atol=1e-5)
    assert cache.length.tolist() == whole.length.tolist() == [70, 20]
    next_token = torch.tensor([5, 6])
    a, b = (model.decode(next_token, c).log_softmax(-1) for c in (cache, whole))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_state_of_another_model_is_refused():
    _, hybrid = prefill(tiny_model(), [random_ids(9)])
    with pytest.raises(ValueError, match="of a model with other layers"):
        tiny_model("attention").new_cache(1, 32).import_row(0, hybrid.export_row(0, 9))


def test_the_state_of_a_kda_layer_does_not_grow():
    model = tiny_model()
    short, long = model.new_cache(1, 32), model.new_cache(1, 256)
    for a, b in zip(short.layers, long.layers, strict=True):
        if isinstance(a, KDACache) and isinstance(b, KDACache):
            assert [x.shape for x in a.tensors()] == [x.shape for x in b.tensors()]
    page = PAGE_SIZE * (16 + 4) * 8  # bytes of one attention layer's page
    assert short.bytes_per_sequence(200) - short.bytes_per_sequence(100) == 3 * page
    baseline = tiny_model("attention").new_cache(1, 32)
    assert baseline.bytes_per_sequence(200) == 2 * 7 * page


def test_a_first_piece_does_not_go_on_from_who_had_the_row_before():
    model, ids = tiny_model(), random_ids(32)
    want, _ = prefill(model, [ids])
    _, used = prefill(model, [random_ids(40, seed=5)])
    for begin in (0, 16):
        packing = Packing.from_lengths([16], start=[begin])
        got = model.prefill(ids[begin : begin + 16], packing, used, torch.tensor([0]))
    torch.testing.assert_close(got.log_softmax(-1), want.log_softmax(-1), rtol=0, atol=1e-5)
