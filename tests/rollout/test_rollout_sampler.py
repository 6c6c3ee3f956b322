"""One draw: the distribution it comes from, and the random number it is made of."""

import numpy as np
import pytest
import torch

from deltarl.rollout.rng import derive_seed, uniform
from deltarl.rollout.sampler import sample

VOCAB, DRAWS = 30, 40_000


def logits_row(seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))


def reference(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities after temperature, then top-k, then top-p of what is left."""
    scaled = logits.astype(np.float64) / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    if top_k:
        probs[order[top_k:]] = 0
        probs /= probs.sum()
    kept = np.searchsorted(np.cumsum(probs[order]), top_p) + 1  # the smallest set that reaches top_p
    if top_p < 1:
        probs[order[kept:]] = 0
    return probs / probs.sum()


def draw(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, u: torch.Tensor):
    rows = len(u)
    return sample(
        logits.expand(rows, -1),
        torch.full((rows,), temperature),
        torch.full((rows,), top_k),
        torch.full((rows,), top_p),
        u,
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (1, 1.0), (5, 1.0), (99, 1.0), (0, 0.5), (0, 0.93), (6, 0.8)])
def test_tokens_come_from_the_truncated_distribution(temperature, top_k, top_p):
    logits = logits_row()
    grid = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS  # every quantile once: no sampling noise
    token, logprob = draw(logits, temperature, top_k, top_p, grid)
    frequency = np.bincount(token.numpy(), minlength=VOCAB) / DRAWS
    want = reference(logits.numpy(), temperature, top_k, top_p)
    np.testing.assert_allclose(frequency, want, atol=2 / DRAWS)
    assert set(token.tolist()) <= set(np.flatnonzero(want))
    whole = torch.log_softmax(logits / temperature, -1)
    torch.testing.assert_close(logprob, whole[token])
    assert logprob.dtype == torch.float32


def test_random_draws_follow_the_distribution_too():
    logits = logits_row(1)
    u = uniform(torch.full((DRAWS,), derive_seed(1)), torch.arange(DRAWS))
    token, _ = draw(logits, 1.0, 0, 0.9, u)
    want = DRAWS * reference(logits.numpy(), 1.0, 0, 0.9)
    seen = want > 0
    counts = np.bincount(token.numpy(), minlength=VOCAB)
    assert (counts[~seen] == 0).all()
    freedom = seen.sum() - 1
    assert ((counts - want)[seen] ** 2 / want[seen]).sum() < freedom + 5 * (2 * freedom) ** 0.5


def test_temperature_zero_is_greedy_with_the_logprob_of_temperature_one():
    logits = torch.stack([logits_row(seed) for seed in range(8)])
    rows = len(logits)
    token, logprob = sample(
        logits, torch.zeros(rows), torch.zeros(rows), torch.ones(rows), torch.linspace(0, 0.999, rows).double()
    )
    assert torch.equal(token, logits.argmax(-1))
    torch.testing.assert_close(logprob, logits.log_softmax(-1).max(-1).values)


def test_each_row_is_drawn_by_its_own_rule():
    logits = logits_row()
    temperature, top_k = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0, 1, 0])
    top_p, u = torch.tensor([1.0, 1.0, 0.9999]), torch.full((3,), 0.01, dtype=torch.float64)
    token, _ = sample(logits.expand(3, -1), temperature, top_k, top_p, u)
    assert token[0] == token[1] == logits.argmax()
    assert token[2] != logits.argmax()


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_unit_interval_give_possible_tokens(u):
    logits = torch.full((VOCAB,), -2000.0)
    logits[4], logits[9] = 3.0, 2.0  # all others have no probability left, the first and the last token included
    token, logprob = draw(logits, 1.0, 0, 1.0, torch.tensor([u], dtype=torch.float64))
    assert token.item() in (4, 9)
    assert torch.isfinite(logprob).all()


def test_equal_logits_under_top_k_keep_exactly_k():
    token, _ = draw(torch.zeros(VOCAB), 1.0, 3, 1.0, torch.linspace(0, 0.9999, 500).double())
    assert len(set(token.tolist())) == 3


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
