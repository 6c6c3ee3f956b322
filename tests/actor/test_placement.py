"""Bundles on a cluster of several raylets: who is beside whom, what is refused, who waits, and what is left behind."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deltarl.actor.placement import Bundle, Node, fits
from deltarl.rl.cli import ConfigError, load_config

TINY = Path(__file__).parents[1] / "rl" / "tiny.yaml"


@pytest.mark.parametrize(
    ("bundles", "nodes", "answer"),
    [
        ([(1, 0), (1, 0)], [(1, 0), (1, 0)], True),
        ([(2, 0)], [(1, 0), (1, 0)], False),  # as many CPUs in all, but on no node
        ([(0.1, 0.6), (0.1, 0.6), (0.1, 0.5)], [(1, 2)], False),  # 1.7 GPUs in sum, but none can be cut in two
        ([(0.1, 0.6), (0.1, 0.6), (0.1, 0.4), (0.1, 0.4)], [(1, 2)], True),
        ([(0.1, 0.4), (0.1, 2), (0.1, 0.6)], [(1, 3)], True),
        ([(0.1, 2)], [(1, 1), (1, 1)], False),
        ([(0.1, 1)] * 4, [(1, 2), (1, 2)], True),
        ([(0.5, 1)] * 4, [(1, 4)], False),
        ([(0.2, 0.1)] * 10, [(2, 1)], True),
    ],
)
def test_what_fits_on_empty_nodes(bundles, nodes, answer) -> None:
    asked = [Bundle("a worker", cpus, gpus) for cpus, gpus in bundles]
    assert fits(asked, [Node(str(i), cpus, gpus) for i, (cpus, gpus) in enumerate(nodes)]) is answer


COLOCATED = "sft=null learner.num_ranks=2 learner.num_gpus=0.6 rollout.num_workers=4 rollout.num_gpus=0.2"
APART = f"placement=disaggregated {COLOCATED}"
WIDE = (
    "sft=null placement=disaggregated learner.num_ranks=3 learner.num_gpus=1 rollout.num_workers=2 rollout.num_gpus=0.5"
)


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """Of two nodes with 2 CPUs and, so they are told, 2 GPUs each (tests/actor/two_nodes.py)."""
    folder = Path(__file__).parent
    command = [sys.executable, folder / "two_nodes.py", folder.parent / "rl" / "tiny.yaml", COLOCATED, APART, WIDE]
    env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_colocated_samplers_are_on_the_gpu_of_their_rank(seen) -> None:
    ranks, samplers = seen[COLOCATED]["ranks"], seen[COLOCATED]["samplers"]
    assert ranks[0] != ranks[1]
    assert samplers == [ranks[0], ranks[1], ranks[0], ranks[1]]
    assert ranks[0][0] == ranks[1][0]  # one node holds both


@pytest.mark.slow
def test_disaggregated_samplers_have_gpus_of_their_own_on_the_other_node(seen) -> None:
    ranks, samplers = seen[APART]["ranks"], seen[APART]["samplers"]
    assert ranks[0][0] == ranks[1][0]  # together, although spread is asked for
    assert ranks[0][1] != ranks[1][1]
    assert samplers == [samplers[0]] * 4  # all on one GPU
    assert samplers[0][0] != ranks[0][0]


@pytest.mark.slow
def test_ranks_meet_on_loopback_unless_they_are_on_several_nodes(seen) -> None:
    for case in (COLOCATED, APART):
        assert {address for address, _ in seen[case]["meeting"]} == {"127.0.0.1"}
        assert seen[case]["sum"] == [1.0, 1.0]
    assert len({node for node, _ in seen[WIDE]["ranks"]}) == 2
    assert {address for address, _ in seen[WIDE]["meeting"]} == {seen[WIDE]["meeting"][0][1]}
    assert seen[WIDE]["sum"] == [3.0, 3.0, 3.0]


@pytest.mark.slow
def test_who_has_to_wait_for_another_job_says_so_and_goes_on_when_it_ends(seen) -> None:
    first, *waited, last = seen["waiting"]
    assert (first, last) == ("the other has it", "placed")
    assert waited
    for line in waited:
        assert "for a place on the cluster, which other jobs hold. Asked: 1 x a worker (1 CPUs)." in line
        assert re.search(r"Free: [\d.]+ CPUs, \d GPUs of 4 CPUs, 4 GPUs$", line)


@pytest.mark.slow
def test_a_run_that_failed_leaves_no_reservation_and_one_too_large_is_told_the_sizes(seen) -> None:
    assert set(seen["left"]) == {"REMOVED"}
    assert "Asked: 5 x a worker (0.5 CPUs, 1 GPUs). The cluster has: node " in seen["refused"]
    assert seen["refused"].count("(2 CPUs, 2 GPUs)") == 2


def test_shares_that_no_gpu_holds_are_refused_with_the_sum() -> None:
    with pytest.raises(ConfigError, match=r"are 1\.5: lower one of them or rollout\.num_workers, or set placement"):
        load_config(TINY, ["learner.num_gpus=0.5", "rollout.num_gpus=0.5", "rollout.num_workers=2"])
