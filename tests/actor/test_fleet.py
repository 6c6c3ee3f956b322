"""Workers are killed here, as `kill -9` does it: no item is lost, and a new worker knows what the old one was told."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from ray import cloudpickle

from deltarl.actor.host import WorkerLostError

# Ray's processes cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Worker:
    def __init__(self, bullets: str = ""):
        self.factor, self.offset = 1, 0
        self.bullets = Path(bullets)

    def set_factor(self, factor: int) -> None:
        self.factor = factor

    def set_offset(self, offsets: np.ndarray) -> None:
        self.offset = int(offsets.sum())

    def compute(self, x: int, seconds: float = 0.0) -> int:
        time.sleep(seconds)
        bullet = self.bullets / str(x)
        if self.bullets.name and bullet.exists():  # dies on this item, as many times as the file has characters
            shots = bullet.read_text()
            bullet.write_text(shots[1:]) if shots[1:] else bullet.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.factor * x + self.offset

    def refuse(self, x: int) -> int:
        raise KeyError(f"no {x}")

    def pid(self) -> int:
        return os.getpid()


class CannotStart:
    def __init__(self):
        raise RuntimeError("model folder is empty")


def items(n: int) -> list[tuple[int]]:
    return [(i,) for i in range(n)]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.01)


def test_results_are_in_the_order_of_the_items_whoever_is_first_and_exceptions_come_through(make_fleet):
    fleet = make_fleet(Worker, 2)
    assert len(fleet) == 2
    assert len(set(fleet.pids())) == 2
    assert fleet.map("compute", [(i, 0.2 if i == 0 else 0.0) for i in range(7)]) == list(range(7))
    assert fleet.map("compute", []) == []
    with pytest.raises(KeyError, match="no 3"):
        fleet.map("refuse", [(3,)])
    assert fleet.restarts == 0
    assert fleet.map("compute", items(3)) == [0, 1, 2]  # the workers live on


def test_a_broadcast_reaches_every_worker_and_references_arrive_as_what_they_stand_for(make_fleet):
    fleet = make_fleet(Worker, 2)
    fleet.broadcast("set_factor", 10)
    fleet.broadcast("set_offset", ray.put(np.arange(4)))
    assert fleet.map("compute", [(i, 0.05) for i in range(6)]) == [10 * i + 6 for i in range(6)]


def test_workers_killed_in_the_middle_of_an_item_lose_nothing_and_forget_nothing(make_fleet, tmp_path):
    fleet = make_fleet(Worker, 2, str(tmp_path))
    fleet.broadcast("set_factor", 3)
    fleet.broadcast("set_factor", 10)  # only the last counts
    fleet.broadcast("set_offset", ray.put(np.arange(4)))
    for victim in (1, 5):
        (tmp_path / str(victim)).write_text("x")
    assert fleet.map("compute", items(8)) == [10 * i + 6 for i in range(8)]
    assert fleet.restarts == 2
    assert not list(tmp_path.iterdir())
    assert len(set(fleet.pids())) == 2


def test_an_item_may_kill_two_workers_but_not_a_third(make_fleet, tmp_path):
    fleet = make_fleet(Worker, 1, str(tmp_path))
    (tmp_path / "1").write_text("xx")
    assert fleet.map("compute", items(3)) == [0, 1, 2]
    assert fleet.restarts == 2
    (tmp_path / "1").write_text("x" * 10)
    with pytest.raises(WorkerLostError, match="3 test workers died on the same item of compute"):
        fleet.map("compute", items(3))
    assert (tmp_path / "1").read_text() == "x" * 7


def test_a_worker_that_stands_still_is_replaced_and_its_item_done_by_another(make_fleet, caplog):
    fleet = make_fleet(Worker, 2, stuck_after=4.0)
    fleet.broadcast("set_factor", 10)
    stopped = fleet.pids()
    os.kill(stopped[0], signal.SIGSTOP)
    assert fleet.map("compute", items(6)) == [10 * i for i in range(6)]
    assert fleet.restarts == 1
    assert "one of the test workers is stuck: compute took over 4 s" in caplog.text
    assert stopped[1] in fleet.pids()
    os.kill(stopped[1], signal.SIGSTOP)
    fleet.broadcast("set_factor", 20)
    assert fleet.restarts == 2
    assert fleet.map("compute", items(4)) == [20 * i for i in range(4)]


def test_a_stopped_worker_is_replaced_long_before_its_item_could_be_late_and_a_busy_one_is_left_alone(
    make_fleet, caplog
):
    fleet = make_fleet(Worker, 2, heartbeat=1.0)
    stopped = fleet.pids()[0]
    os.kill(stopped, signal.SIGSTOP)
    assert fleet.map("compute", [(i, 2.0) for i in range(3)]) == [0, 1, 2]
    assert fleet.restarts == 1
    assert f"one of the test workers stands still (process {stopped} was stopped)" in caplog.text
    assert not Path(f"/proc/{stopped}").exists()


def test_those_left_do_the_work_while_there_is_no_room_for_a_replacement(make_fleet):
    fleet = make_fleet(Worker, 2)
    fleet.broadcast("set_factor", 10)
    blocker = ray.remote(Worker).options(num_cpus=1.9).remote()
    ray.get(blocker.pid.remote())
    fleet._slots[0]._spec = replace(fleet._slots[0]._spec, num_cpus=0.2)
    kill(fleet.pids()[0])
    assert fleet.map("compute", items(6)) == [10 * i for i in range(6)]
    fleet.broadcast("set_factor", 20)
    assert fleet.map("compute", items(6)) == [20 * i for i in range(6)]
    ray.kill(blocker)
    assert len(fleet.pids()) == 2
    assert fleet.map("compute", [(i, 0.1) for i in range(6)]) == [20 * i for i in range(6)]


def test_workers_killed_while_idle_are_replaced_when_they_are_needed(make_fleet):
    fleet = make_fleet(Worker, 2)
    fleet.broadcast("set_factor", 10)
    for pid in fleet.pids():
        kill(pid)
    assert fleet.map("compute", items(5)) == [10 * i for i in range(5)]
    assert fleet.restarts == 2
    kill(fleet.pids()[1])
    fleet.broadcast("set_factor", 20)
    assert fleet.restarts == 3
    assert fleet.map("compute", [(i, 0.05) for i in range(4)]) == [20 * i for i in range(4)]


def test_a_worker_that_cannot_be_constructed_is_an_error_that_says_why(make_fleet):
    with pytest.raises(WorkerLostError, match=r"test workers could not be started[\s\S]*model folder is empty"):
        make_fleet(CannotStart, 1)


class DiesOnState:
    """The first replacement is killed while it is given the broadcast state."""

    def __init__(self, marks: str):
        self.marks, self.value = Path(marks), 0

    def set_value(self, value: int) -> None:
        (self.marks / str(os.getpid())).touch()
        if len(list(self.marks.iterdir())) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        self.value = value

    def get(self) -> int:
        return self.value

    def pid(self) -> int:
        return os.getpid()


def test_a_replacement_killed_while_it_is_told_the_state_is_replaced_itself(make_fleet, tmp_path):
    fleet = make_fleet(DiesOnState, 1, str(tmp_path))
    fleet.broadcast("set_value", 7)
    kill(fleet.pids()[0])
    assert fleet.map("get", [()]) == [7]
    assert fleet.restarts == 2
