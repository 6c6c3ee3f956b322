"""Ranks that work in step: each gets its own share, they find each other, and one that dies ends the gang."""

import os
import signal
import sys

import pytest
import ray
from ray import cloudpickle

from deltarl.actor.host import StateLostError, WorkerLostError

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Rank:
    def environment(self) -> dict[str, str]:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
        return {name: os.environ[name] for name in names if name in os.environ}

    def double(self, x: int) -> int:
        return 2 * x

    def die(self, really: bool) -> None:
        if really:
            os.kill(os.getpid(), signal.SIGKILL)

    def refuse(self) -> None:
        raise ValueError("the gradient is not finite")


class OnlyElsewhere:
    """What nobody can read."""

    def __reduce__(self):
        return int, ("was brought here",)


class Publisher:
    def weights(self, number: int):
        if number < 0:
            raise ValueError("no weights")
        return OnlyElsewhere() if number else 5


class SumOverRanks:
    """Meets the others by the environment alone, as torchrun's children do."""

    def all_reduce(self, x: float) -> float:
        import torch
        from torch import distributed

        distributed.init_process_group("gloo")
        total = torch.tensor(x)
        distributed.all_reduce(total)
        distributed.destroy_process_group()
        return float(total)


def test_every_rank_gets_its_share_and_results_come_by_rank(make_gang):
    gang = make_gang(Rank, 3)
    assert gang.scatter("double", [(1,), (2,), (3,)]) == [2, 4, 6]
    assert gang.broadcast("double", 5) == [10, 10, 10]
    assert ray.get(gang.first("double", 4)) == 8
    environments = gang.broadcast("environment")
    assert [e["RANK"] for e in environments] == ["0", "1", "2"]
    assert [e["LOCAL_RANK"] for e in environments] == ["0", "1", "2"]
    assert {e["WORLD_SIZE"] for e in environments} == {"3"}
    assert len({e["MASTER_PORT"] for e in environments}) == 1
    with pytest.raises(ValueError, match="the gradient is not finite"):
        gang.broadcast("refuse")
    with pytest.raises(ValueError, match="zip"):
        gang.scatter("double", [(1,)])


def test_what_the_first_rank_returns_does_not_pass_through_this_process(make_gang):
    gang = make_gang(Publisher, 2)
    held = gang.first("weights", 1)
    with pytest.raises(ray.exceptions.RaySystemError, match="was brought here"):
        ray.get(held)
    assert ray.get(gang.later("weights", 0)) == 5
    with pytest.raises(ValueError, match="no weights"):
        gang.first("weights", -1)


def test_every_rank_sees_the_gpu_it_reserved_and_no_other(make_gang):
    environments = make_gang(Rank, 2, num_gpus=1.0).broadcast("environment")
    assert sorted(e["CUDA_VISIBLE_DEVICES"] for e in environments) == ["0", "1"]
    assert [e["LOCAL_RANK"] for e in environments] == ["0", "0"]
    assert make_gang(Rank, 1).broadcast("environment")[0]["CUDA_VISIBLE_DEVICES"] == ""


def test_a_single_rank_is_not_told_of_others(make_gang):
    assert make_gang(Rank, 1).broadcast("environment") == [{"CUDA_VISIBLE_DEVICES": ""}]


def test_ranks_find_each_other(make_gang):
    assert make_gang(SumOverRanks, 2).scatter("all_reduce", [(1.5,), (2.0,)]) == [3.5, 3.5]


def test_a_rank_that_dies_is_an_error_that_tells_what_to_do(make_gang):
    gang = make_gang(Rank, 2)
    with pytest.raises(WorkerLostError, match=r"a test ranks process died, worker-1.*; start the same command again"):
        gang.scatter("die", [(False,), (True,)])


def test_a_first_rank_that_died_is_the_same_error_when_it_alone_is_called(make_gang):
    gang = make_gang(Rank, 1)
    with pytest.raises(WorkerLostError, match=r"a test ranks process died.*; start the same command again"):
        ray.get(gang.first("die", True))


def test_a_rank_that_stands_still_ends_the_gang(make_gang):
    gang = make_gang(Rank, 2, heartbeat=1.0)
    os.kill(gang.pids()[1], signal.SIGSTOP)
    with pytest.raises(StateLostError, match="a test ranks process died"):
        gang.broadcast("double", 1)
