"""Which Ray a run is in, and whether the shares of GPUs that its actors reserve fit the GPUs there are."""

import os
import subprocess
import sys

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


RUN = """
import sys
import ray
from deltarl.actor import runtime
runtime.start(0.5, [])
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def test_two_runs_side_by_side_have_a_ray_of_their_own_and_join_the_one_they_are_told(ray_address: str) -> None:
    def start(**env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", RUN],
            env={name: x for name, x in os.environ.items() if name != "RAY_ADDRESS"} | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    runs = [start(), start(RAY_ADDRESS=ray_address)]
    own, told = (run.stdout.readline().strip() for run in runs if run.stdout is not None)
    for run in runs:
        run.communicate("")
        assert run.returncode == 0
    assert own
    assert own != ray_address
    assert told == ray_address
