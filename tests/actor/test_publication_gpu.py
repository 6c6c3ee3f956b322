"""Weights by handle on one GPU, and by NCCL between two: `test_publication.py`, whose cast this is, with GPUs."""

import pytest
import torch
from test_publication import Run

from deltarl.model.weight_notice import CHUNK, word_sum

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.fixture
def made(ray_address):
    """`made(...)`: a `Run` that ends with the test."""
    runs: list[Run] = []

    def make(*args: object) -> Run:
        runs.append(Run(*args))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


def test_the_sum_on_a_gpu_is_that_on_the_cpu():
    for n in (1, 7, 8, CHUNK * 8 + 3, 5 * CHUNK * 8):
        x = torch.randint(0, 256, (n,), dtype=torch.uint8)
        assert int(word_sum(x.cuda())) == int(word_sum(x))


@pytest.mark.parametrize("transport", ["ipc", "collective"])
@pytest.mark.parametrize("copy", [False, True])
def test_processes_on_one_gpu(made, transport, copy, caplog):
    run = made(2, "0", "0")
    publisher = run.publisher(transport, copy)
    for _ in range(20):
        run.learner.broadcast("update")
        publisher.publish()
        assert run.loaded() == [["Fetched"]] * 2
    assert not [r for r in caplog.records if r.name == "deltarl.rl.publisher"]


@two
def test_handles_of_another_gpu_are_refused_and_the_weights_come_through_the_object_store(made, caplog):
    run = made(1, "0", "1")
    run.learner.broadcast("update")
    run.publisher("ipc").publish()
    assert run.loaded() == [["Fetched", "WeightUpdate"]]
    assert "and this sampler's on GPU" in caplog.text


@two
@pytest.mark.parametrize("copy", [False, True])
def test_nccl_also_after_a_sampler_was_killed(made, copy, caplog, tmp_path):
    run, bullet = made(1, "0", "1"), tmp_path / "bullet"
    publisher = run.publisher("collective", copy, 30.0, True)
    for _ in range(3):
        run.learner.broadcast("update")
        publisher.publish()
        assert run.loaded() == [["Fetched"]]
    run.samplers.broadcast("aim", str(bullet))
    bullet.touch()
    run.learner.broadcast("update")
    publisher.publish()
    assert run.loaded() == [["WeightUpdate"]]
    run.learner.broadcast("update")
    publisher.publish()
    assert run.loaded() == [["Fetched"]]
    assert not [r for r in caplog.records if r.name == "deltarl.rl.publisher"]


@pytest.mark.parametrize(
    ("transport", "sampler", "own_gpus"),
    [
        ("ipc", "0", False),
        ("collective", "0", False),
        pytest.param("collective", "1", True, marks=two),
        ("object_store", "0", False),
    ],
)
def test_samplers_take_weights_over_in_the_middle_of_their_work(made, transport, sampler, own_gpus, caplog):
    run = made(1, "0", sampler, True)
    publisher = run.publisher(transport, True, 30.0, own_gpus)
    for _ in range(10):
        (before,) = run.learner.broadcast("update")
        working = run.ahead.do(run.samplers.map, "work", [(before + 1,)])
        publisher.publish()
        assert working.result() == [[before, before + 1]]
        assert run.loaded() == [["WeightUpdate" if transport == "object_store" else "Staged"]]
    assert not [r for r in caplog.records if r.name == "deltarl.rl.publisher"]
