"""New weights handed to a worker while another thread of it samples: from which token on they count."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from rollout_models import CONTEXT, GroupEngine, Trajectory, largest_gap, policy, random_prompts

from deltarl.model.checkpoint import save_model
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.model.weight_ipc import SharedWeights, Sharer
from deltarl.model.weight_notice import Notice
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


def offer(model: HybridForCausalLM, version: int) -> list[SharedWeights]:
    """The model's weights by handle, as the learner's ranks offer them, while there is the model."""
    state = model.state_dict()
    return [Sharer().share(Notice.of(version, state), state)]


@pytest.mark.parametrize("fetched", [False, True])
@pytest.mark.parametrize("in_flight", ["keep", "replay"])
def test_tokens_from_the_next_step_on_are_of_the_new_weights_and_all_carry_the_version_that_sampled_them(
    make, in_flight, fetched
):
    model, other, worker = policy(), policy(seed=1), make(in_flight)
    before = GroupEngine(model).generate(PROMPTS, PARAMS)

    def hand_over() -> None:
        if fetched:  # returns when they are loaded, for which the sampling thread must go on
            others.append(receiving.submit(worker.receive_weights, offer(other, 3)))
            while worker._waiting is None:
                time.sleep(0.001)
        else:
            worker.load_weights(WeightUpdate.of(other, 3))
        assert worker._engine.weight_version == 0, "the thread that samples is to load them"

    others: list[Future] = []
    with ThreadPoolExecutor(1) as receiving:
        got = meanwhile(worker, hand_over)
        assert [done.result() for done in others] == [None] * fetched
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
    worker, other = make("replay"), policy(seed=2)
    worker.load_weights(WeightUpdate.of(policy(seed=1), 3))
    assert worker._engine.weight_version == 3
    worker.load_weights(WeightUpdate.of(policy(seed=2), 2))
    worker.load_weights(WeightUpdate.of(policy(seed=2), 3))
    assert worker.receive_weights(offer(other, 3)) is None
    check_samples(worker, 3, policy(seed=1))
    assert worker.receive_weights(offer(other, 4)) is None
    assert worker._engine.weight_version == 4
    check_samples(worker, 4, other)


def check_samples(worker: InFlightWorker, version: int, model: HybridForCausalLM) -> None:
    """That it samples with the weights of `model`, which it knows by that version."""
    for request, expected in zip(
        worker.generate(PROMPTS, PARAMS), GroupEngine(model).generate(PROMPTS, PARAMS), strict=True
    ):
        for t, want in zip(Trajectory.of(request), expected, strict=True):
            assert (t.completion_ids, t.weight_versions) == (want.completion_ids, [version] * 40)
            assert largest_gap(model, t) <= 1e-5


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


def test_fetched_weights_that_are_not_what_was_published_are_refused_and_the_worker_samples_on(make):
    worker, other = make("keep"), policy(seed=1)
    (good,) = offer(other, 3)
    damaged = replace(good, notice=replace(good.notice, checksum="0"))
    said: list[str | None] = []
    got = meanwhile(worker, lambda: said.append(worker.receive_weights([damaged])))
    assert "after loading, 0 published" in str(said)
    assert {v for group in got for t in group for v in t.weight_versions} == {0}
    assert "and this sampler's on the CPU" in str(worker.receive_weights([replace(good, device="elsewhere")]))
    assert worker.receive_weights([good]) is None
    check_samples(worker, 3, other)


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
