"""What kills workers is found and left out; all else is done, in the pieces it would have been done in."""

import os
import signal
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from deltarl.actor.apart import map_apart
from deltarl.actor.fleet import KILLER
from deltarl.actor.host import WorkerLostError

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Bomb:
    """Killed by 13, and tells what it was asked for together."""

    def squares(self, numbers: list[int]) -> list[list[int]]:
        if 13 in numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        return [[n * n, len(numbers)] for n in numbers]


class FakeFleet:
    """As many workers as are needed, all alike; `kills` says whether an item kills its worker."""

    def __init__(self, kills):
        self.kills, self.deaths, self.asked = kills, 0, []

    def attempt(self, method, items, max_deaths):
        self.asked += [item[0] for item in items]
        return [self._one(item[0], max_deaths) for item in items]

    def _one(self, numbers, max_deaths):
        for _ in range(max_deaths):
            if not self.kills(numbers):
                return numbers
            self.deaths += 1
        return KILLER


def item(share):
    return (list(share),)


def test_a_share_is_done_without_the_units_at_fault_and_in_one_piece():
    fleet = FakeFleet(lambda numbers: bool({3, 12} & set(numbers)))
    results, aside = map_apart(fleet, "do", [range(8), range(8, 16), range(16, 20)], item)
    assert results == [[0, 1, 2, 4, 5, 6, 7], [8, 9, 10, 11, 13, 14, 15], [16, 17, 18, 19]]
    assert list(aside) == [3, 12]
    assert fleet.deaths == 2 * (2 + 1 + 1 + 2)  # the share, a half, a quarter, the unit


def test_workers_that_died_by_chance_set_nothing_aside():
    killed = iter([True, True, True])
    fleet = FakeFleet(lambda numbers: len(numbers) > 2 and next(killed, False))
    assert map_apart(fleet, "do", [range(8)], item) == ([list(range(8))], {})


def test_a_share_may_be_at_fault_as_a_whole_but_not_all_of_them():
    fleet = FakeFleet(lambda numbers: 0 in numbers or 1 in numbers)
    assert map_apart(fleet, "do", [[0, 1], [2]], item) == ([None, [2]], {0: None, 1: None})
    with pytest.raises(WorkerLostError, match="each of the 2 items of do killed 2 workers"):
        map_apart(fleet, "do", [[0], [1]], item)


def test_units_that_kill_together_alone_are_an_error_that_says_so():
    with pytest.raises(WorkerLostError, match="do of 4 items together kills workers, and none of them does alone"):
        map_apart(FakeFleet(lambda numbers: len(numbers) > 3), "do", [range(4)], item)


def test_workers_are_really_killed(make_fleet, caplog):
    fleet = make_fleet(Bomb, 2)
    results, aside = map_apart(fleet, "squares", [[1, 2], [5, 13]], item)
    assert results == [[[1, 2], [4, 2]], [[25, 1]]]
    assert list(aside) == [13]
    assert fleet.restarts == 4
    assert "squares of 2 items together killed 2 workers" in caplog.text
    assert Path(f"/proc/{fleet.pids()[0]}").exists()
