"""Weights by broadcast and by handle: every sampler has what was published, whoever dies or damages it on the way.

On CPUs: broadcasts over gloo, handles of shared memory. `test_publication_gpu.py` is the same on GPUs.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest
import ray
from ray import cloudpickle

from deltarl.actor.fleet import Fleet
from deltarl.actor.gang import Gang
from deltarl.actor.host import WorkerSpec
from deltarl.rl.ahead import Ahead
from deltarl.rl.publisher import Publisher
from deltarl.rollout.in_flight import InFlightWorker
from deltarl.rollout.worker import RolloutWorker

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def make_model(seed: int):
    import torch

    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(300, 500), torch.nn.Linear(500, 2))
    model[1].to(torch.bfloat16)
    return model.to("cuda") if torch.cuda.is_available() else model


class Rank:
    """Stands for the learner."""

    def __init__(self):
        from deltarl.rl.weight_offers import WeightOffers

        self.model, self.version, self.offers = make_model(1), 0, WeightOffers()
        self.damaged = self.refuses = False

    def update(self) -> int:
        """Returns the version before."""
        self.version += 1
        for p in self.model.parameters():
            p.data.add_(0.5)
        return self.version - 1

    def damage(self, how: bool) -> None:
        self.damaged = how

    def refuse(self, how: bool) -> None:
        self.refuses = how

    def listen(self, address: str) -> int:
        return self.offers.listen(address)

    def offer_weights(self, transport: str, copy: bool, oldest: int):
        from dataclasses import replace

        if self.refuses:
            raise RuntimeError("no handle of this memory")
        state = {name: x.clone() if copy else x for name, x in self.model.state_dict().items()}
        notice = self.offers.offer(self.version, state, oldest)
        if self.damaged:
            notice = replace(notice, checksum="0" * 32)
        return self.offers.share(notice) if transport == "ipc" else notice

    def offered_weights(self, version: int):
        return self.offers.update(version)

    def weights(self):
        from deltarl.model.weights import WeightUpdate

        return WeightUpdate.of(self.model, self.version)


class Holder:
    """Stands for an engine."""

    def __init__(self):
        self.model, self.weight_version, self.loads, self.bullet = make_model(2), 0, [], ""

    def load_weights(self, update) -> None:
        self.loads.append(type(update).__name__)
        if os.path.exists(self.bullet):
            os.unlink(self.bullet)
            os.kill(os.getpid(), signal.SIGKILL)
        update.load_into(self.model)
        self.weight_version = update.version


class Sampler(RolloutWorker):
    def __init__(self, **options):
        from deltarl.rollout import worker

        worker.make_backend = lambda *args, **kwargs: Holder()
        super().__init__("", max_num_seqs=1, **options)

    def aim(self, bullet: str) -> None:
        self._backend.bullet = bullet

    def held(self):
        from deltarl.model.weights import WeightUpdate

        holder = self._backend
        loads, holder.loads = holder.loads, []
        return holder.weight_version, WeightUpdate.of(holder.model, holder.weight_version).checksum, loads


class BusySampler(Sampler, InFlightWorker):
    """Takes weights over while it works."""

    def __init__(self):
        from deltarl.rollout import in_flight

        in_flight.Engine = Holder
        super().__init__(in_flight="keep")

    def work(self, until: int, seconds: float = 30.0) -> list[int]:
        """Stands for `generate`, which goes on until it has that version; returns those that it had."""
        seen, deadline = [self._engine.weight_version], time.monotonic() + seconds
        with self._sampling:
            while seen[-1] < until:
                assert time.monotonic() < deadline, f"version {seen[-1]} and no newer one"
                time.sleep(0.001)
                self._take_over()
                if self._engine.weight_version != seen[-1]:
                    seen.append(self._engine.weight_version)
        return seen


class Run:
    """A learner and samplers that serve for all tests: starting them takes longer than these."""

    def __init__(self, size: int = 2, learner_gpu: str = "", samplers_gpu: str = "", in_flight: bool = False):
        def spec(cls: type, gpu: str, **options) -> WorkerSpec:
            return WorkerSpec(cls, num_cpus=0.05, env={"CUDA_VISIBLE_DEVICES": gpu}, **options)

        self.size, self.in_flight = size, in_flight
        self.learner = Gang("test learner", spec(Rank, learner_gpu), 1)
        beside = {"beside": ("load_weights", "receive_weights")} if in_flight else {}
        self.samplers = Fleet(
            "test samplers", spec(BusySampler if in_flight else Sampler, samplers_gpu, **beside), size
        )
        self.ahead = Ahead(lambda step: None, int(in_flight), 0, in_thread=in_flight)

    def publisher(self, transport: str, copy: bool = False, seconds: float = 20.0, own_gpus: bool = False) -> Publisher:
        members = self.samplers, self.learner, self.ahead
        return Publisher(transport, own_gpus, *members, copy, seconds, in_flight=self.in_flight)

    def close(self) -> None:
        self.ahead.close()
        self.samplers.close()
        self.learner.close()

    def loaded(self) -> list[list[str]]:
        """Checks that every sampler holds what the learner has; returns the kinds of what each has loaded since."""
        expected = ray.get(self.learner.first("weights"))
        held = self.ahead.do(self._held).result()
        assert [held[i][:2] for i in range(self.size)] == [(expected.version, expected.checksum)] * self.size
        return [held[i][2] for i in range(self.size)]

    def _held(self) -> dict[int, tuple]:
        self.samplers.pids()  # all are there
        while len(self.samplers.ready()) < self.size:  # one that is new is told the weights
            self.samplers._started(self.samplers._next())
        return self.samplers.gather("held", dict.fromkeys(range(self.size), ()))


@pytest.fixture(scope="module")
def run(ray_address) -> Iterator[Run]:
    made = Run()
    yield made
    made.close()


@pytest.fixture(scope="module")
def busy(ray_address) -> Iterator[Run]:
    made = Run(in_flight=True)
    yield made
    made.close()


@pytest.mark.parametrize("transport", ["object_store", "collective", "ipc"])
def test_every_sampler_gets_the_weights_and_nothing_else_each_time(run, transport, caplog):
    publisher = run.publisher(transport)
    for _ in range(3):
        run.learner.broadcast("update")
        publisher.publish()
        assert run.loaded() == [["WeightUpdate" if transport == "object_store" else "Fetched"]] * 2
    assert not [r for r in caplog.records if r.name == "deltarl.rl.publisher"]


@pytest.mark.parametrize("transport", ["collective", "ipc"])
def test_weights_that_arrive_damaged_are_refused_and_taken_through_the_object_store(run, transport, caplog):
    run.learner.broadcast("update")
    run.learner.broadcast("damage", True)
    run.publisher(transport).publish()
    run.learner.broadcast("damage", False)
    assert run.loaded() == [["Fetched", "WeightUpdate"]] * 2
    assert "did not get to 2 of 2 samplers" in caplog.text
    assert "after loading, 00000000000000000000000000000000 published" in caplog.text


@pytest.mark.parametrize("transport", ["collective", "ipc"])
def test_a_learner_that_goes_on_sends_a_copy(run, transport):
    publisher, later = run.publisher(transport, copy=True), []
    run.learner.broadcast("update")
    ((version, expected),) = [(w.version, w.checksum) for w in run.learner.broadcast("weights")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.ahead, "do", lambda call, *args: later.append(partial(call, *args)))
        publisher.publish()
    run.learner.broadcast("update")
    later.pop()()
    held = run.samplers.gather("held", dict.fromkeys(range(2), ()))
    assert [held[i] for i in range(2)] == [(version, expected, ["Fetched"])] * 2


@pytest.mark.timeout(120)
def test_a_sampler_killed_on_the_way_is_replaced_and_the_next_time_takes_part(run, caplog, tmp_path):
    publisher, bullet = run.publisher("collective", seconds=3.0), tmp_path / "bullet"
    run.learner.broadcast("update")
    publisher.publish()  # they have met
    assert run.loaded() == [["Fetched"]] * 2
    run.samplers.broadcast("aim", str(bullet))
    bullet.touch()
    restarts = run.samplers.restarts
    run.learner.broadcast("update")
    publisher.publish()
    assert run.samplers.restarts == restarts + 1
    assert "1 of 2 did not come in 3 s" in caplog.text
    assert sorted(run.loaded()) == [["Fetched", "WeightUpdate"], ["WeightUpdate"]]
    run.learner.broadcast("update")
    publisher.publish()
    assert run.loaded() == [["Fetched"]] * 2


@pytest.mark.parametrize("transport", ["collective", "ipc"])
def test_what_the_learner_cannot_offer_goes_through_the_object_store(run, transport, caplog):
    publisher = run.publisher(transport)
    loads = []
    for refuses in (True, False):
        run.learner.broadcast("refuse", refuses)
        run.learner.broadcast("update")
        publisher.publish()
        loads += run.loaded()
    assert loads == [["WeightUpdate"]] * 2 + [["Fetched"]] * 2
    assert "no handle of this memory" in caplog.text


@pytest.mark.slow
def test_a_learner_that_does_not_answer_costs_three_waits_and_then_none(run, caplog):
    publisher = run.publisher("collective", seconds=2.0)
    publisher._host = publisher._host[0], 1  # where nobody listens
    loads = []
    for _ in range(4):
        run.learner.broadcast("update")
        publisher.publish()
        loads += run.loaded()
    assert loads == [["Fetched", "WeightUpdate"]] * 6 + [["WeightUpdate"]] * 2
    assert "the learner does not answer at 127.0.0.1" in caplog.text
    assert "from now on all weights go through the object store" in caplog.text


@pytest.mark.parametrize("transport", ["object_store", "collective", "ipc"])
def test_samplers_take_weights_over_in_the_middle_of_their_work(busy, transport, caplog):
    publisher = busy.publisher(transport, copy=True)
    for _ in range(3):
        (before,) = busy.learner.broadcast("update")
        working = busy.ahead.do(busy.samplers.map, "work", [(before + 1,)] * 2)
        publisher.publish()
        assert working.result() == [[before, before + 1]] * 2
        assert busy.loaded() == [["WeightUpdate" if transport == "object_store" else "Staged"]] * 2
    assert not [r for r in caplog.records if r.name == "deltarl.rl.publisher"]


@pytest.mark.parametrize("transport", ["collective", "ipc"])
def test_damaged_weights_never_reach_a_sampler_at_work(busy, transport, caplog):
    (before,) = busy.learner.broadcast("update")
    working = busy.ahead.do(busy.samplers.map, "work", [(before, 3.0)] * 2)
    busy.learner.broadcast("damage", True)
    busy.publisher(transport, copy=True).publish()
    busy.learner.broadcast("damage", False)
    assert working.result() == [[before]] * 2
    assert busy.loaded() == [["WeightUpdate"]] * 2
    assert "did not get to 2 of 2 samplers" in caplog.text


@pytest.mark.timeout(120)
@pytest.mark.parametrize("transport", ["collective", "ipc"])
def test_a_sampler_killed_as_it_takes_weights_over_is_replaced_and_the_work_goes_on(busy, transport, tmp_path):
    publisher, bullet = busy.publisher(transport, copy=True, seconds=3.0), tmp_path / "bullet"
    busy.ahead.do(busy.samplers.broadcast, "aim", str(bullet)).result()
    restarts = busy.samplers.restarts
    for shots in (1, 0):
        (before,) = busy.learner.broadcast("update")
        working = busy.ahead.do(busy.samplers.map, "work", [(before + 1,)] * 2)
        if shots:
            bullet.touch()
        publisher.publish()
        assert all(seen[-1] == before + 1 for seen in working.result())
        kinds = sorted(busy.loaded())
        assert kinds == ([["Staged"], ["WeightUpdate"]] if shots else [["Staged"]] * 2)
    assert busy.samplers.restarts == restarts + 1
