"""New weights handed to a worker while another thread of it samples: from which token on they count."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from rollout_models import CONTEXT, GroupEngine, Trajectory, largest_gap, policy, random_prompts

from deltarl.model.checkpoint import save_model
from deltarl.model.weights import WeightMismatchError, WeightUpdate
from deltarl.rollout.in_flight import InFlightWorker
from deltarl.rollout.params import SamplingParams

PROMPTS = random_prompts([9, 20, 33])
PARAMS = [SamplingParams(n=2, max_tokens=40, seed=i) for i in range(3)]
PAUSE_AT = 12  # the step in which the sampling thread waits for the other one


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], InFlightWorker]:
    """`make("keep")`: a worker with version 0, the weights of `policy()`."""
    save_model(policy(), tmp_path)

    def worker(in_flight: str) -> InFlightWorker:
        return InFlightWorker(str(tmp_path), in_flight=in_flight, max_num_seqs=4, max_model_len=CONTEXT)

    return worker


def meanwhile(worker: InFlightWorker, do: Callable[[], None]) -> list[list[Trajectory]]:
    """What the worker samples in a thread, in whose step `PAUSE_AT` this one does something."""
    step, steps = worker._engine.step, 0
    with ThreadPoolExecutor(1) as other:

        def counted():
            nonlocal steps
            steps += 1
            if steps == PAUSE_AT:
                other.submit(do).result(timeout=30)
            return step()

        worker._engine.step = counted
        try:
            return [Trajectory.of(output) for output in worker.generate(PROMPTS, PARAMS)]
        finally:
            worker._engine.step = step


@pytest.mark.parametrize("in_flight", ["keep", "replay"])
def test_tokens_from_the_next_step_on_are_of_the_new_weights_and_all_carry_the_version_that_sampled_them(
    make, in_flight
):
    model, other, worker = policy(), policy(seed=1), make(in_flight)
    before = GroupEngine(model).generate(PROMPTS, PARAMS)

    def hand_over() -> None:
        worker.load_weights(WeightUpdate.of(other, 3))
        assert worker._engine.weight_version == 0, "the thread that samples is to load them"

    got = meanwhile(worker, hand_over)
    split = 0
    for a, b in zip(chain(*got), chain(*before), strict=True):
        old = a.weight_versions.count(0)
        split += 0 < old < 40
        assert a.weight_versions == [0] * old + [3] * (40 - old)
        assert a.completion_ids[:old] == b.completion_ids[:old]
        early = replace(a, completion_ids=a.completion_ids[:old], logprobs=a.logprobs[:old])
        assert old == 0 or largest_gap(model, early) <= 1e-5
        late = Trajectory(a.prompt_ids + a.completion_ids[:old], a.completion_ids[old:], a.logprobs[old:], [], [], "")
        assert (largest_gap(other, late) <= 1e-5) == (in_flight == "replay" or old == 0)
    assert split == 4, "those that had a row"
    assert max(t.weight_versions.count(0) for group in got for t in group) == PAUSE_AT


def test_an_idle_worker_has_new_weights_at_once_and_never_goes_back(make):
    worker = make("replay")
    worker.load_weights(WeightUpdate.of(policy(seed=1), 3))
    assert worker._engine.weight_version == 3
    worker.load_weights(WeightUpdate.of(policy(seed=2), 2))
    worker.load_weights(WeightUpdate.of(policy(seed=2), 3))
    got = [Trajectory.of(output) for output in worker.generate(PROMPTS, PARAMS)]
    assert got == [
        [replace(t, weight_versions=[3] * 40) for t in group]
        for group in GroupEngine(policy(seed=1)).generate(PROMPTS, PARAMS)
    ]


def test_of_several_that_arrive_at_once_the_newest_counts(make):
    worker = make("replay")

    def hand_over() -> None:
        for version in (2, 5, 4):
            worker.load_weights(WeightUpdate.of(policy(seed=version), version))

    found = {v for group in meanwhile(worker, hand_over) for t in group for v in t.weight_versions}
    assert found == {0, 5}


def test_weights_that_come_after_the_last_token_are_there_for_the_next(make):
    worker = make("keep")
    with worker._sampling:  # as `generate` holds it when it has no further step
        worker.load_weights(WeightUpdate.of(policy(seed=1), 3))
    assert worker._engine.weight_version == 0
    outputs = worker.generate(PROMPTS, PARAMS)
    assert {v for o in outputs for t in o.outputs for v in t.weight_versions} == {3}


def test_weights_that_are_not_what_was_published_end_the_call_and_the_worker_works_on(make):
    worker, good = make("keep"), WeightUpdate.of(policy(seed=1), 3)
    with pytest.raises(WeightMismatchError, match="weights version 3"):
        meanwhile(worker, lambda: worker.load_weights(replace(good, checksum="0")))
    with pytest.raises(WeightMismatchError, match="weights version 3"):
        worker.load_weights(replace(good, checksum="0"))
    worker.load_weights(good)
    assert worker._engine.weight_version == 3
    assert len(worker.generate(PROMPTS, PARAMS)) == 3


def test_only_the_native_engine_can(monkeypatch, make):
    monkeypatch.setattr("deltarl.rollout.worker.make_backend", lambda *args, **options: object())
    with pytest.raises(ValueError, match="takes weights between two calls alone"):
        make("keep")
