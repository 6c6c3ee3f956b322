"""A whole run under Ray whose samplers take over new weights in the middle of their batches, also when workers die."""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from ray import cloudpickle

from deltarl.actor import runtime
from deltarl.rl import fleets
from deltarl.rl.cli import load_config
from deltarl.rl.collect import Collector
from deltarl.rl.config import RunConfig
from deltarl.rl.fleets import Fleets
from deltarl.rl.jsonl import read_jsonl
from deltarl.rl.train import train
from deltarl.rollout.in_flight import InFlightWorker

cloudpickle.register_pickle_by_value(sys.modules[__name__])

TINY = Path(__file__).parents[1] / "rl" / "tiny.yaml"
OLD = 3  # tokens of an answer that are sampled before the new weights come
GROUP = 4  # rollout.num_generations, by which a batch is told from an evaluation


REWARD = "def variety(completions, **columns):\n    return [len(set(c)) / 10 for c in completions]\n"


class Patient(InFlightWorker):
    """Waits a little, in every batch but its first, for the weights that the learner makes meanwhile. There are none to
    wait for when it does a share of a worker that was killed."""

    batches = 0

    def generate(self, prompts: Sequence[Sequence[int]], params: Sequence) -> list:
        self.steps, self.batches = 0, self.batches + (params[0].n == GROUP)
        self.waits = params[0].n == GROUP and self.batches > 1
        return super().generate(prompts, params)

    def _take_over(self) -> None:
        self.steps += 1
        deadline = time.monotonic() + 2
        while self.waits and self.steps == OLD + 1 and self._waiting is None and time.monotonic() < deadline:
            time.sleep(0.005)
        super()._take_over()


@pytest.fixture
def config(ray_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setattr(runtime, "stop", lambda: None)
    Patient.steps, Patient.waits = 0, False
    monkeypatch.setattr(fleets, "InFlightWorker", Patient)
    (tmp_path / "mine.py").write_text(REWARD)
    reward = f"reward.functions=[{{name: variety, function: '{tmp_path / 'mine.py'}:variety'}}]"
    ahead = "rollout.max_staleness=1", "rollout.in_flight=replay", "alerts.mismatch_k3=1e-8"
    return load_config(TINY, [*ahead, "sft=null", reward, f"output_dir={tmp_path}"])


def kill_before(monkeypatch: pytest.MonkeyPatch, step: int, fleet: str) -> None:
    """One worker of the fleet, once, shortly after the batch of `step` is begun."""
    pids, struck = list[int](), list[int]()
    start, collect = Fleets.start, Collector.collect

    def start_and_look(*arguments):
        found = start(*arguments)
        pids.extend(getattr(found, fleet).pids())
        return found

    def collect_under_fire(self, now):
        if now == step and not struck:
            struck.append(pids[0])
            threading.Timer(0.05, os.kill, (pids[0], signal.SIGKILL)).start()
        return collect(self, now)

    monkeypatch.setattr(Fleets, "start", start_and_look)
    monkeypatch.setattr(Collector, "collect", collect_under_fire)


@pytest.mark.slow
def test_answers_of_several_versions_are_learned_from_and_none_is_older_than_allowed(config, monkeypatch):
    kill_before(monkeypatch, step=4, fleet="rollout")
    train(config)
    rows = read_jsonl(config.run_dir / "metrics.jsonl")
    assert rows[-1]["worker/restarts"] == 1
    assert [row["staleness/max"] for row in rows[1:]] == [0, 1, 1, 1, 1, 1]
    assert rows[1]["staleness/mixed_frac"] == 0
    several = [row for row in rows[2:] if row["staleness/mixed_frac"] > 0]
    assert len(several) >= 3, "all but that of the killed worker, if the learner is not very slow"
    assert all(0 < row["staleness/mean"] < 1 for row in several)
    assert sum(row["mismatch/k3"] > 1e-8 for row in several) >= 2, (
        "an alert, had the tokens been of the learner's weights"
    )
    assert {row["alert/mismatch"] for row in rows[1:]} == {0}
    samples = read_jsonl(config.run_dir / "samples.jsonl")
    assert {row["weight_version"] - row["step"] for row in samples if row["split"] == "eval"} == {0}
    assert {row["weight_version"] - row["step"] for row in samples if row["split"] == "train"} <= {-1, -2}


@pytest.mark.slow
def test_a_run_whose_learner_dies_goes_on_from_its_checkpoint(config, monkeypatch):
    kill_before(monkeypatch, step=4, fleet="learner")
    train(config)
    rows = read_jsonl(config.run_dir / "metrics.jsonl")
    assert rows[-1]["worker/learner_restarts"] == 1
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert max(row["staleness/max"] for row in rows[1:]) == 1
    assert rows[-1]["staleness/mixed_frac"] > 0
