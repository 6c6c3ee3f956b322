"""Whether the shares of GPUs that actors reserve fit the GPUs there are."""

import pytest

from deltarl.actor.runtime import _gpus_for


@pytest.mark.parametrize(
    ("shares", "gpus"),
    [
        ([], 0),
        ([0.5, 0.5], 1),
        ([1.0, 1.0, 0.5], 3),
        ([0.4, 0.6, 0.6, 0.4], 2),
        ([0.6, 0.6, 0.5], 3),  # 1.7 in sum, but none of them can be cut in two
        ([0.1] * 10, 1),
        ([0.7, 0.2, 0.3, 0.8], 2),
    ],
)
def test_shares_are_not_cut_in_two(shares: list[float], gpus: int) -> None:
    assert _gpus_for(shares) == gpus
