"""Whole runs under Ray: killed drivers and workers, plug-ins in other processes, several learner ranks."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deltarl.actor import runtime
from deltarl.actor.fleet import Fleet
from deltarl.actor.host import WorkerLostError, WorkerSpec
from deltarl.reward.plugin import RewardPluginError
from deltarl.reward.rewards import RewardSpec, Scorer
from deltarl.rl.cli import load_config
from deltarl.rl.collect import Collector
from deltarl.rl.config import RunConfig
from deltarl.rl.fleets import Fleets
from deltarl.rl.jsonl import read_jsonl
from deltarl.rl.metrics import read_curve
from deltarl.rl.run_grpo import train

TINY = Path(__file__).parents[1] / "rl" / "tiny.yaml"


@pytest.fixture(scope="module", autouse=True)
def shared_ray(ray_address: str) -> Iterator[None]:
    """Runs in this process join the session's Ray and leave it running."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "stop", lambda: None)
        yield


def rows(config: RunConfig) -> list[dict]:
    file = config.run_dir / "metrics.jsonl"
    return read_jsonl(file) if file.exists() else []


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run that nothing happened to, warm start included."""
    config = load_config(TINY, [f"output_dir={tmp_path_factory.mktemp('reference')}"])
    train(config)
    return config


@pytest.fixture
def again(reference: RunConfig, tmp_path: Path) -> Callable[..., RunConfig]:
    """`again("key=value", ...)`: the same recipe in a folder of its own, with the reference's starting point."""

    def make(*overrides: str) -> RunConfig:
        config = load_config(TINY, [f"output_dir={tmp_path}", *overrides])
        shutil.copytree(reference.run_dir / "initial", config.run_dir / "initial")
        return config

    return make


def test_a_run_leaves_a_curve_checkpoints_and_a_report(reference):
    curve_ = rows(reference)
    assert [row["step"] for row in curve_] == [0, 1, 2, 3, 4, 5, 6]
    assert all(row["worker/restarts"] == 0 for row in curve_)
    for row in curve_[1:]:
        assert row["mismatch/logprob_abs_max"] <= 1e-5  # across processes and published weights
        assert row["kl/old"] < 1e-8
        assert row["reward/format/mean"] <= 0.1
    assert sum(row["optim/grad_norm"] > 0 for row in curve_[1:]) >= 4
    assert (reference.run_dir / "checkpoints" / "step_000006" / "config.json").is_file()
    assert (reference.run_dir / "report.html").is_file()


def kill_a_worker(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Lands while the workers sample for `step`; whenever it does, the curve must not tell."""
    pids: list[int] = []
    start, collect = Fleets.start, Collector.collect

    def start_and_look(*arguments):
        fleets = start(*arguments)
        pids.extend(fleets.rollout.pids())
        return fleets

    def collect_under_fire(self, now):
        if now == step:
            threading.Timer(0.01, os.kill, (pids[0], signal.SIGKILL)).start()
        return collect(self, now)

    monkeypatch.setattr(Fleets, "start", start_and_look)
    monkeypatch.setattr(Collector, "collect", collect_under_fire)


@pytest.mark.timeout(600)  # two runs, of which the first has a Python of its own to start
def test_a_killed_run_started_again_and_then_a_killed_worker_leave_the_curve_as_it_was(
    reference, again, ray_address, monkeypatch
):
    config = again()
    command = [sys.executable, "-m", "deltarl.rl.run_grpo", "--config", str(TINY), f"output_dir={config.output_dir}"]
    driver = subprocess.Popen(command, env=os.environ | {"RAY_ADDRESS": ray_address}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(rows(config)) < 3 and driver.poll() is None and time.monotonic() < deadline:  # past the first checkpoint
        time.sleep(0.002)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    before = read_curve(config.run_dir)
    assert 3 <= len(before) < 6

    kill_a_worker(monkeypatch, step=6)
    train(config)
    assert read_curve(config.run_dir) == read_curve(reference.run_dir)
    assert before == read_curve(reference.run_dir)[: len(before)]
    assert rows(config)[-1]["worker/restarts"] == 1


def test_a_run_whose_learner_is_killed_goes_on_by_itself_to_the_same_curve(reference, again, monkeypatch, caplog):
    config = again()
    pids: list[int] = []
    start, collect = Fleets.start, Collector.collect

    def start_and_look(*arguments):
        fleets = start(*arguments)
        pids.extend(fleets.learner.pids())
        return fleets

    def collect_after_fire(self, now):
        if now == 4 and len(pids) == 1:
            os.kill(pids[0], signal.SIGKILL)
        return collect(self, now)

    monkeypatch.setattr(Fleets, "start", start_and_look)
    monkeypatch.setattr(Collector, "collect", collect_after_fire)
    train(config)
    assert len(pids) == 2
    assert read_curve(config.run_dir) == read_curve(reference.run_dir)
    assert rows(config)[-1]["worker/learner_restarts"] == 1
    # That of step 3 may not have been complete.
    assert re.search(r"a learner process died; going on by itself from step_00000[23] \(restart 1 of at", caplog.text)


def test_the_run_in_one_process_has_the_same_curve(reference, again):
    config = again("in_process=true")
    train(config)
    assert read_curve(config.run_dir) == read_curve(reference.run_dir)


def test_a_run_that_samples_ahead_has_the_curve_of_one_process_also_when_a_worker_dies(again, monkeypatch, caplog):
    alone = again("rollout.max_staleness=1", "in_process=true", "name=alone")
    config = again("rollout.max_staleness=1", "rollout.weight_transport=collective")
    train(alone)
    kill_a_worker(monkeypatch, step=4)
    train(config)
    assert read_curve(config.run_dir) == read_curve(alone.run_dir)
    assert rows(config)[-1]["worker/restarts"] == 1
    assert "weights go to the samplers by collective" in caplog.text
    assert "from now on all weights go through the object store" not in caplog.text
    assert [row["staleness/max"] for row in rows(config)[1:]] == [0, 1, 1, 1, 1, 1]


def test_two_learner_ranks_learn_what_one_learns(reference, again, caplog):
    # On the two GPUs that Ray is told of here, each rank and a worker beside it fit no other way.
    shares = "learner.num_gpus=0.6", "rollout.num_gpus=0.4"
    config = again("learner.num_ranks=2", "steps=2", *shares)
    train(config)
    one, two = rows(reference)[1], rows(config)[1]
    for name in ("reward/mean", "loss/policy", "entropy", "optim/grad_norm", "mismatch/logprob_abs_mean"):
        assert two[name] == pytest.approx(one[name], abs=1e-5), name
    assert rows(config)[2]["mismatch/logprob_abs_max"] <= 1e-5
    assert "weights go to the samplers by ipc: learner and samplers share GPUs" in caplog.text
    assert "they go through the object store" not in caplog.text


def scorers(tmp_path: Path, source: str) -> Fleet:
    (tmp_path / "mine.py").write_text(source)
    rewards = [RewardSpec("mine", f"{tmp_path / 'mine.py'}:mine")]
    return Fleet("reward workers", WorkerSpec(Scorer, kwargs={"rewards": rewards}, num_cpus=0.05), 1)


def test_a_plug_in_that_fails_in_its_worker_is_named_here(ray_address, tmp_path):
    fleet = scorers(tmp_path, "def mine(completions, **columns):\n    return [1 / len(c) for c in completions]\n")
    assert fleet.map("score", [(["p"], ["four"], {})])[0].components == {"mine": [0.25]}
    with pytest.raises(RewardPluginError, match=r"reward 'mine' raised ZeroDivisionError.*on sample 1: ''"):
        fleet.map("score", [(["p", "q"], ["a", ""], {})])
    assert fleet.restarts == 0
    fleet.close()


def test_a_plug_in_that_cannot_be_loaded_stops_the_start_by_name(ray_address, tmp_path):
    with pytest.raises(WorkerLostError, match=r"reward workers could not be started[\s\S]*mine\.py"):
        scorers(tmp_path, "import no_such_library\n")
