"""From token losses to the loss of the batch: the papers' formulas, for any split."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from deltarl.rl.objectives.aggregation import divisor, token_weights

LENGTHS = [5, 1, 12, 7]
MAX_TOKENS = 20
LOSS = np.random.default_rng(0).normal(size=sum(LENGTHS))
ANSWERS = np.split(LOSS, np.cumsum(LENGTHS)[:-1])
EXPECTED = {
    "token_mean": LOSS.mean(),
    "sequence_mean": np.mean([x.mean() for x in ANSWERS]),
    "constant": np.mean([x.sum() / MAX_TOKENS for x in ANSWERS]),
}


def part(kind: str, answers: list[np.ndarray]) -> float:
    """What a micro-batch of these answers adds to the loss of the whole batch."""
    loss = torch.tensor(np.concatenate(answers))
    weights = token_weights(kind, torch.tensor([len(x) for x in answers]))
    total = loss if weights is None else loss * weights
    return float(total.sum()) / divisor(kind, sum(LENGTHS), len(LENGTHS), MAX_TOKENS)


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("cut", [[4], [1, 3], [2, 2], [1, 1, 1, 1]])
def test_however_the_batch_is_cut_the_parts_add_up_to_the_formula(kind, cut):
    bounds = np.cumsum([0, *cut])
    parts = [part(kind, ANSWERS[a:b]) for a, b in pairwise(bounds)]
    assert sum(parts) == pytest.approx(EXPECTED[kind], rel=1e-6)
