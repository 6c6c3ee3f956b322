"""Who watches a fleet is told of every call, and a line about waiting says why actors have no place."""

import itertools
import os
import sys

import pytest
import ray
from ray import cloudpickle

from deltarl.actor import host
from deltarl.actor.fleet import Fleet, WorkerLostError
from deltarl.actor.gang import Gang
from deltarl.actor.host import WorkerSpec, wait_any

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Adder:
    def __init__(self) -> None:
        self.offset = 0

    def set_offset(self, offset: int) -> None:
        self.offset = offset

    def add(self, x: int) -> int:
        if x < 0:
            os.abort()
        return x + self.offset


class Recorder:
    def __init__(self) -> None:
        self.numbers, self.begun, self.ended = itertools.count(), {}, []

    def begin(self, fleet: str, index: int, phase: str) -> int:
        number = next(self.numbers)
        self.begun[number] = fleet, index, phase
        return number

    def end(self, number: int) -> None:
        self.ended.append(number)


@pytest.fixture
def watch(ray_address: str) -> Recorder:
    return Recorder()


def spec(watch: Recorder, **options: float) -> WorkerSpec:
    return WorkerSpec(Adder, num_cpus=0.05, fleet="adder", watch=watch, **options)


def test_every_call_of_a_fleet_begins_and_ends_also_the_one_a_worker_dies_of(watch):
    fleet = Fleet("adders", spec(watch), 2)
    try:
        fleet.broadcast("set_offset", 10)
        assert fleet.map("add", [(1,), (2,), (3,)]) == [11, 12, 13]
        before = len(watch.begun)
        with pytest.raises(WorkerLostError):
            fleet.map("add", [(-1,)])
    finally:
        fleet.close()
    first = list(watch.begun.values())[:before]
    expected = [("adder", i, phase) for phase in ("start", "set_offset") for i in (0, 1)]
    assert first[:4] == expected
    assert [(fleet, phase) for fleet, _, phase in first[4:]] == [("adder", "add")] * 3
    assert {"add", "start", "set_offset"} == {phase for _, _, phase in list(watch.begun.values())[before:]}
    assert sorted(watch.ended) == list(watch.begun)


def test_every_call_of_a_gang_begins_and_ends_for_each_rank(watch):
    gang = Gang("adders", spec(watch), 2)
    gang.broadcast("set_offset", 1)
    assert ray.get(gang.first("add", 1)) == 2
    gang.close()
    assert list(watch.begun.values()) == [("adder", i, p) for p in ("start", "set_offset", "add") for i in (0, 1)]
    assert sorted(watch.ended) == list(watch.begun)


def test_a_line_about_waiting_says_what_actors_without_a_place_ask_for(watch, monkeypatch, caplog):
    monkeypatch.setattr(host, "PATIENCE", 0.3)
    large = WorkerSpec(Adder, num_cpus=100.0)
    worker = large.spawn()
    try:
        deadline = host.time.monotonic() + 1.0
        assert wait_any([large.call(worker, "__ray_ready__")], "the adder to start", deadline) is None
    finally:
        ray.kill(worker)
    assert "for the adder to start; 1 of them have no place: each reserves 100 CPU, and the cluster has" in caplog.text
    assert "of 2 CPU free" in caplog.text
