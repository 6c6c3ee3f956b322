"""What is handed over to workers in the middle of their work: it reaches them there, and whoever replaces them."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer

import pytest
from ray import cloudpickle

from deltarl.actor.fleet import Fleet
from deltarl.actor.host import WorkerSpec

cloudpickle.register_pickle_by_value(sys.modules[__name__])

WITHIN = 60.0  # seconds for something to arrive


class Listener:
    def __init__(self):
        self.heard = [0]

    def hear(self, number: int) -> None:
        if number < 0:
            raise ValueError(f"{number} is no good")
        self.heard.append(number)

    def work(self, until: int = 0, file: str = "", leave: str = "") -> list[int]:
        """Until it has heard that number and there is that file; leaves another, and says what it had heard."""
        deadline = time.monotonic() + WITHIN
        while self.heard[-1] < until or (file and not Path(file).exists()):
            assert time.monotonic() < deadline, self.heard
            time.sleep(0.01)
        if leave:
            Path(leave).touch()
        return list(self.heard)


@pytest.fixture
def fleet(ray_address: str) -> Iterator[Fleet]:
    fleet = Fleet("test workers", WorkerSpec(Listener, num_cpus=0.05, beside=("hear",)), 2)
    yield fleet
    fleet.close()


def later(do: Callable[[], None]) -> None:
    Timer(0.5, do).start()


def test_workers_hear_while_they_work_and_all_have_heard_when_they_are_settled(fleet):
    fleet.settle()  # nothing: there is nothing to wait for
    later(lambda: fleet.hand_over("hear", 5))
    assert fleet.map("work", [(5,), (5,)]) == [[0, 5], [0, 5]]
    fleet.hand_over("hear", 6)
    fleet.settle()
    assert {heard[-1] for heard in fleet.map("work", [()] * 4)} == {6}
    assert fleet.restarts == 0
    fleet.hand_over("hear", -1)
    with pytest.raises(ValueError, match="-1 is no good"):
        fleet.settle()


def test_a_worker_that_dies_with_something_on_its_way_is_replaced_by_one_that_heard_it_before_it_works(fleet, tmp_path):
    victim, _ = fleet.pids()

    def strike() -> None:
        os.kill(victim, signal.SIGSTOP)  # it cannot hear any more
        fleet.hand_over("hear", 6)
        fleet.hand_over("hear", 7)
        os.kill(victim, signal.SIGKILL)

    later(strike)
    done = str(tmp_path / "done")
    # The first is the victim's and then, as the other worker waits for it, its successor's.
    assert fleet.map("work", [(1, "", done), (1, done)]) == [[0, 7], [0, 6, 7]]
    assert fleet.restarts == 1
    assert victim not in fleet.pids()
