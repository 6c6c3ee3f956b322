"""One draw: the distribution it comes from, its log-probabilities, and the random number it is made of."""

import numpy as np
import pytest
import torch

from deltarl.rollout.rng import derive_seed, uniform
from deltarl.rollout.sampler import Draw, TopKTopP, sample, top_tokens

VOCAB, DRAWS = 30, 40_000


def logits_row(seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))


def reference(logits: np.ndarray, temperature: float, min_p: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities after temperature, then min-p, then top-k, then top-p, each of what is left."""
    scaled = logits.astype(np.float64) / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    probs[probs < min_p * probs.max()] = 0
    if top_k > 0:
        probs[order[top_k:]] = 0
    probs /= probs.sum()
    kept = np.searchsorted(np.cumsum(probs[order]), top_p) + 1  # the smallest set that reaches top_p
    if top_p < 1:
        probs[order[kept:]] = 0
    return probs / probs.sum()


def truncation(rows: int, top_k: int, top_p: float) -> TopKTopP | None:
    if top_k <= 0 and top_p >= 1:
        return None
    candidates = min(top_k, VOCAB) if top_k > 0 else VOCAB
    top_ps = torch.full((rows,), top_p, dtype=torch.float64)
    return TopKTopP(torch.arange(rows), torch.full((rows,), top_k), top_ps, candidates)


def draw(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, u: torch.Tensor, min_p: float = 0.0
) -> Draw:
    rows = len(u)
    return sample(
        logits.expand(rows, -1),
        torch.full((rows,), temperature),
        u,
        min_p=torch.full((rows,), min_p, dtype=torch.float64) if min_p else None,
        top=truncation(rows, top_k, top_p),
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("min_p", "top_k", "top_p"),
    [
        (0, 0, 1.0),
        (0, 1, 1.0),
        (0, 5, 1.0),
        (0, 99, 1.0),
        (0, -1, 0.5),
        (0, 0, 0.93),
        (0, 6, 0.8),
        (0.05, 0, 1.0),
        (0.05, 4, 1.0),
        (0.02, 7, 0.9),
        (1.0, 0, 1.0),
    ],
)
def test_tokens_come_from_the_truncated_distribution(temperature, min_p, top_k, top_p):
    logits = logits_row()
    grid = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS  # every quantile once: no sampling noise
    token, logprob, sampling_logprob = draw(logits, temperature, top_k, top_p, grid, min_p)
    frequency = np.bincount(token.numpy(), minlength=VOCAB) / DRAWS
    want = reference(logits.numpy(), temperature, min_p, top_k, top_p)
    np.testing.assert_allclose(frequency, want, atol=2 / DRAWS)
    assert set(token.tolist()) <= set(np.flatnonzero(want))
    whole = torch.log_softmax(logits / temperature, -1)
    assert torch.equal(logprob, whole[token])
    np.testing.assert_allclose(sampling_logprob.numpy(), np.log(want[token.numpy()]), atol=2e-6)
    assert token.dtype == torch.int64
    assert logprob.dtype == sampling_logprob.dtype == torch.float32


def test_random_draws_follow_the_distribution_too():
    logits = logits_row(1)
    u = uniform(torch.full((DRAWS,), derive_seed(1)), torch.arange(DRAWS))
    token = draw(logits, 1.0, 0, 0.9, u).token
    want = DRAWS * reference(logits.numpy(), 1.0, 0, 0, 0.9)
    seen = want > 0
    counts = np.bincount(token.numpy(), minlength=VOCAB)
    assert (counts[~seen] == 0).all()
    freedom = seen.sum() - 1
    assert ((counts - want)[seen] ** 2 / want[seen]).sum() < freedom + 5 * (2 * freedom) ** 0.5


def test_temperature_zero_is_greedy_with_the_logprob_of_temperature_one():
    logits = torch.stack([logits_row(seed) for seed in range(8)])
    rows = len(logits)
    token, logprob, sampling_logprob = sample(logits, torch.zeros(rows), torch.linspace(0, 0.999, rows).double())
    assert torch.equal(token, logits.argmax(-1))
    assert torch.equal(logprob, logits.log_softmax(-1).max(-1).values)
    assert (sampling_logprob == 0).all()


def test_greedy_takes_the_first_of_equals():
    logits = torch.zeros(1, VOCAB)
    logits[0, [7, 3, 20]] = 1.0
    assert sample(logits, torch.zeros(1), torch.zeros(1, dtype=torch.float64)).token.item() == 3


def test_each_row_is_drawn_by_its_own_rule():
    logits = logits_row()
    temperature, u = torch.tensor([0.0, 1.0, 1.0]), torch.full((3,), 0.01, dtype=torch.float64)
    top = TopKTopP(torch.tensor([1, 2]), torch.tensor([1, 0]), torch.tensor([1.0, 0.9999]).double(), VOCAB)
    token = sample(logits.expand(3, -1), temperature, u, top=top).token
    assert token[0] == token[1] == logits.argmax()
    assert token[2] != logits.argmax()


def test_the_draw_is_from_the_adjusted_logits_and_the_logprob_of_the_others():
    logits, adjusted = logits_row(2), logits_row(3)
    u = torch.linspace(0, 0.9999, 500).double()
    rows = len(u)
    got = sample(logits.expand(rows, -1), torch.full((rows,), 0.7), u, adjusted=adjusted.expand(rows, -1))
    assert torch.equal(got.token, draw(adjusted, 0.7, 0, 1.0, u).token)
    assert torch.equal(got.logprob, (logits / 0.7).log_softmax(-1)[got.token])
    assert torch.equal(got.sampling_logprob, (adjusted / 0.7).log_softmax(-1)[got.token])


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
@pytest.mark.parametrize("floor", [-2000.0, -torch.inf])
def test_the_ends_of_the_unit_interval_give_possible_tokens(u, floor):
    logits = torch.full((VOCAB,), floor)
    logits[4], logits[9] = 3.0, 2.0  # all others have no probability left, the first and the last token included
    for top_k, top_p, min_p in ((0, 1.0, 0.0), (20, 1.0, 0.0), (0, 0.999, 0.0), (0, 1.0, 0.1)):
        token, logprob, sampling = draw(logits, 1.0, top_k, top_p, torch.tensor([u], dtype=torch.float64), min_p)
        assert token.item() in (4, 9)
        assert torch.isfinite(logprob).all()
        torch.testing.assert_close(sampling, logprob)


@pytest.mark.parametrize("u", [0.0, 0.3, 1 - 2.0**-53])
@pytest.mark.parametrize("only", [0, VOCAB - 1])
def test_one_token_that_is_not_forbidden_is_certain(u, only):
    logits = torch.full((VOCAB,), -torch.inf)
    logits[only] = -5.0
    for top_k, top_p, min_p in ((0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.5, 0.0), (0, 1.0, 1.0)):
        token, logprob, sampling = draw(logits, 1.0, top_k, top_p, torch.tensor([u], dtype=torch.float64), min_p)
        assert (token.item(), logprob.item(), sampling.item()) == (only, 0.0, 0.0)


@pytest.mark.parametrize(("top_k", "top_p", "kept"), [(3, 1.0, 3), (0, 0.5, 15), (0, 0.51, 16), (10, 0.5, 5)])
def test_of_equal_logits_the_first_are_kept(top_k, top_p, kept):
    token, logprob, sampling = draw(torch.zeros(VOCAB), 1.0, top_k, top_p, torch.linspace(0, 0.9999, 500).double())
    assert set(token.tolist()) == set(range(kept))
    np.testing.assert_allclose(logprob.numpy(), -np.log(VOCAB), rtol=1e-6)
    np.testing.assert_allclose(sampling.numpy(), -np.log(kept), rtol=1e-6)


def test_min_p_keeps_what_is_just_as_likely():
    token = draw(torch.zeros(VOCAB), 1.0, 0, 1.0, torch.linspace(0, 0.9999, 500).double(), min_p=1.0).token
    assert set(token.tolist()) == set(range(VOCAB))


def test_nan_stays_in_its_row():
    logits = torch.stack([logits_row(seed) for seed in range(4)])
    u = torch.full((4,), 0.6, dtype=torch.float64)
    clean = sample(logits, torch.ones(4), u, top=truncation(4, 4, 0.9))
    logits[2] = torch.nan
    got = sample(logits, torch.ones(4), u, top=truncation(4, 4, 0.9))
    others = torch.tensor([0, 1, 3])
    assert all(torch.equal(x[others], y[others]) for x, y in zip(got, clean, strict=True))
    assert got.logprob[2].isnan()
    assert 0 <= got.token[2] < VOCAB


def test_top_tokens_are_ranked_and_ties_go_to_the_first():
    logits = torch.stack([logits_row(), torch.zeros(VOCAB), -logits_row().round()])
    temperature = torch.tensor([0.5, 0.0, 2.0])
    for n in (0, 1, 5, VOCAB, VOCAB + 9):
        ids, logprobs = top_tokens(logits, temperature, n)
        for row, scale in enumerate((0.5, 1.0, 2.0)):
            whole = (logits[row] / scale).log_softmax(-1)
            want = np.argsort(-whole.numpy(), kind="stable")[:n]
            assert ids[row].tolist() == want.tolist()
            assert torch.equal(logprobs[row], whole[ids[row]])


def test_uniform_is_splitmix64():
    # The published test vector for seed 1234567.
    vector = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    got = uniform(torch.full((5,), 1234567), torch.arange(5))
    assert got.tolist() == [(x >> 11) * 2.0**-53 for x in vector]


def test_uniform_is_a_pure_function_of_seed_and_position():
    seed = torch.tensor([derive_seed(i) for i in range(50)])
    position = torch.arange(50)
    whole = uniform(seed, position)
    assert torch.equal(whole, torch.cat([uniform(seed[i : i + 1], position[i : i + 1]) for i in range(50)]))
    assert torch.equal(whole.flip(0), uniform(seed.flip(0), position.flip(0)))


@pytest.mark.parametrize("along", ["position", "seed"])
def test_uniform_numbers_are_uniform_and_uncorrelated(along):
    n = 50_000
    if along == "position":
        u = uniform(torch.full((n,), derive_seed(7)), torch.arange(n)).numpy()
    else:
        u = uniform(torch.tensor([derive_seed(7, i) for i in range(n)]), torch.zeros(n, dtype=torch.int64)).numpy()
    assert u.dtype == np.float64
    assert 0 <= u.min() < 1e-3
    assert 1 - 1e-3 < u.max() < 1
    counts = np.histogram(u, 50, (0, 1))[0]
    assert ((counts - n / 50) ** 2 / (n / 50)).sum() < 49 + 5 * (2 * 49) ** 0.5
    for lag in (1, 2, 16):
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 5 / n**0.5


def test_derived_seeds_are_distinct_ordered_and_fit_an_int64():
    parts = [(i, j, k) for i in range(12) for j in range(12) for k in range(12)]
    seeds = [derive_seed(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= s < 2**63 for s in seeds)
    alike = [(1, 23), (12, 3), (123,), (1, 2, 3), (23, 1)]
    assert len({derive_seed(*p) for p in alike}) == len(alike)
    assert derive_seed(-1) != derive_seed(1)
    assert derive_seed(0, 1) == derive_seed(0, 1)
