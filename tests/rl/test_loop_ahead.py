"""Whole runs whose samplers are ahead of the learner, in this process, with a thread and without: which weights sample
what, and that neither kills nor who is faster changes the curve."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from whole_run import KILLS, TINY, Killed, answers, kill_when

from deltarl.model.checkpoint import load_model
from deltarl.reward.plugin import RewardPluginError
from deltarl.rl import loop
from deltarl.rl.ahead import Ahead
from deltarl.rl.checkpoint import CheckpointStore
from deltarl.rl.cli import load_config
from deltarl.rl.collect import Collector
from deltarl.rl.config import RunConfig
from deltarl.rl.episodes import Episodes
from deltarl.rl.learner import Learner
from deltarl.rl.metrics import MetricsWriter, metric_doc, read_curve, read_jsonl
from deltarl.rl.run_eval import evaluate_checkpoint
from deltarl.rl.train import train

DYNAMIC = ("algorithm=dapo", "rollout.num_generations=2", "learner.num_minibatches=2", "learner.correction=token_mask")
PPO = ("algorithm=ppo", "learner.beta=0.05", "rollout.num_generations=1", "learner.critic.lam=0.9")
SWITCHES: dict[str, tuple[str, ...]] = {
    "one ahead": ("rollout.max_staleness=1",),
    "two ahead": ("rollout.max_staleness=2", "learner.learning_rate=3e-3"),
    "dynamic": ("rollout.max_staleness=2", *DYNAMIC),
    "prioritised": ("rollout.max_staleness=1", "data.sampling.order=prioritised", "data.sampling.uniform_share=0.001"),
    "critic": ("rollout.max_staleness=2", *PPO),
    "experts": ("rollout.max_staleness=1", "model.num_experts=4", "learner.router_replay=true"),
}
ONE, TWO = SWITCHES["one ahead"], SWITCHES["two ahead"]


@pytest.fixture(scope="module", autouse=True)
def even_is_right() -> Iterator[None]:
    """The tiny model solves nothing; that an answer's tokens add up to an even number it does half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        even = property(lambda self: np.array([[sum(t.token_ids) % 2 == 0 for t in g.outputs] for g in self.groups]))
        patch.setattr(Episodes, "right", even)
        yield


@pytest.fixture
def thread(monkeypatch) -> None:
    """The samplers work in a thread, though in this process: as they do under Ray."""
    monkeypatch.setattr(loop, "Ahead", lambda collect, ahead, last, _: Ahead(collect, ahead, last, in_thread=True))


Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def make(tmp_path_factory) -> Make:
    """`make("key=value", ...)`: a run in a folder of its own; those of one model share the warm start."""
    starts: dict[str, Path] = {}

    def config(*overrides: str) -> RunConfig:
        found = load_config(TINY, ["in_process=true", f"output_dir={tmp_path_factory.mktemp('run')}", *overrides])
        start = starts.setdefault(found.model.model_dump_json(), found.run_dir / "initial")
        if start.is_dir():
            shutil.copytree(start, found.run_dir / "initial")
        return found

    return config


@pytest.fixture(scope="module")
def straight(make) -> Callable[..., RunConfig]:
    """`straight("key=value", ...)`: such a run, done from start to end without a thread."""
    done: dict[tuple[str, ...], RunConfig] = {}

    def run(*overrides: str) -> RunConfig:
        if overrides not in done:
            done[overrides] = make(*overrides)
            train(done[overrides])
        return done[overrides]

    return run


def rows(config: RunConfig) -> list[dict]:
    return read_jsonl(config.run_dir / "metrics.jsonl")


def sampling_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("sampling")]


@pytest.mark.parametrize("name", SWITCHES)
def test_every_token_is_as_old_as_the_step_says(straight, name):
    config = straight(*SWITCHES[name])
    ahead = config.rollout.max_staleness
    found = rows(config)
    for row in found[1:]:
        assert row["staleness/mean"] == row["staleness/max"] == min(row["step"] - 1, ahead)
    for row in answers(config.run_dir):
        version = row["step"] if row["split"] == "eval" else max(0, row["step"] - 1 - ahead)
        assert row["weight_version"] == version
    assert [row["step"] for row in found if "eval/pass@1" in row] == [0, 3, 6]
    for metric in {metric for row in found for metric in row} - {"step"}:
        metric_doc(metric)
    assert sum(row["optim/grad_norm"] > 0 for row in found[1:]) >= 4  # or the tests below would compare nothing
    drift = [row["mismatch/logprob_abs_max"] for row in found[1:]]
    assert drift[0] <= 1e-5
    assert min(drift[1 + ahead :]) > 1e-4, "the ratio must be to the policy that sampled"


def test_the_ratio_is_to_the_policy_that_sampled_unless_it_is_corrected_for(straight):
    plain, corrected = rows(straight(*TWO)), rows(straight(*TWO, "learner.correction=token_truncate"))
    assert all(row["ratio/max"] > 1.001 for row in plain[3:])
    assert all(row["ratio/max"] == 1 for row in corrected[1:])


def test_evaluations_are_of_the_weights_of_their_step(straight):
    config = straight(*TWO)
    found = evaluate_checkpoint(config)
    found.pop("checkpoint")
    assert found == {name: x for name, x in rows(config)[-1].items() if name.startswith("eval/")}


def test_not_ahead_a_thread_changes_nothing(straight, make, thread):
    config = make()
    train(config)
    assert read_curve(config.run_dir) == read_curve(straight().run_dir)
    assert {row["staleness/max"] for row in rows(config)[1:]} == {0}


@pytest.mark.parametrize("slow", ["learner", "samplers"])
def test_the_curve_does_not_depend_on_who_is_faster(straight, make, thread, monkeypatch, slow):
    owner, method = (Learner, "update") if slow == "learner" else (Collector, "collect")
    real = getattr(owner, method)

    def slowly(self, *args):
        time.sleep(1.0)
        return real(self, *args)

    monkeypatch.setattr(owner, method, slowly)
    config = make(*ONE)
    train(config)
    assert read_curve(config.run_dir) == read_curve(straight(*ONE).run_dir)
    assert answers(config.run_dir) == answers(straight(*ONE).run_dir)
    assert not sampling_threads()
    waited = {name: sum(row[f"time/wait_{name}"] for row in rows(config)[2:]) for name in ("rollout", "learner")}
    assert (waited["learner"] > waited["rollout"]) == (slow == "learner")


MOMENTS = {name: KILLS[name] for name in ("before a checkpoint is renamed", "between update and publishing")} | {
    "between the rows and the checkpoint": (MetricsWriter, "log", lambda self, step, row: step == 4, True),
    "before a batch is sampled, a checkpoint under way": (Collector, "collect", lambda self, step: step == 6, False),
    "when a batch is sampled": (Collector, "collect", lambda self, step: step == 5, True),
    "when the batches of a checkpoint are written": (Ahead, "save", lambda self, folder: self._asked == 6, True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_any_moment_goes_on_as_if_it_had_not_been(straight, make, thread, monkeypatch, moment):
    config = make(*TWO)
    with monkeypatch.context() as patch:
        kill_when(patch, *MOMENTS[moment])
        with pytest.raises(Killed):
            train(config)
    assert not sampling_threads()
    train(config)
    assert read_curve(config.run_dir) == read_curve(straight(*TWO).run_dir)
    assert answers(config.run_dir) == answers(straight(*TWO).run_dir)
    models = [load_model(CheckpointStore(c.run_dir, 2).latest()).state_dict() for c in (config, straight(*TWO))]
    assert all(x.equal(models[1][name]) for name, x in models[0].items())


@pytest.mark.parametrize("name", sorted(SWITCHES.keys() - {"two ahead"}))
def test_every_kind_of_run_resumes_with_the_batches_it_had(straight, make, thread, monkeypatch, name):
    config = make(*SWITCHES[name])
    with monkeypatch.context() as patch:
        kill_when(patch, MetricsWriter, "log", lambda self, step, row: step == 5, True)
        with pytest.raises(Killed):
            train(config)
    train(config)
    assert read_curve(config.run_dir) == read_curve(straight(*SWITCHES[name]).run_dir)
    assert answers(config.run_dir) == answers(straight(*SWITCHES[name]).run_dir)


PLUGIN = """
def picky(completions, trainer_state, **columns):
    if trainer_state.global_step == {step}:
        raise KeyError("no such thing")
    return [float(len(c)) for c in completions]
"""


def test_a_reward_that_fails_while_the_learner_works_is_named_and_what_there_was_is_kept(
    straight, make, thread, tmp_path
):
    plugin = tmp_path / "mine.py"
    options = (*TWO, "eval.interval=6", f"reward.functions=[{{name: picky, function: '{plugin}:picky'}}]")
    plugin.write_text(PLUGIN.format(step=4))  # the batch of step 5
    config = make(*options)
    with pytest.raises(RewardPluginError, match="reward 'picky' raised KeyError: 'no such thing'"):
        train(config)
    assert not sampling_threads()
    assert [row["step"] for row in rows(config)] == [0, 1, 2, 3, 4]
    assert CheckpointStore(config.run_dir, 2).latest().name == "step_000004"
    plugin.write_text(PLUGIN.format(step=-1))
    train(config)
    # The batches that were to be sampled by versions 2 and 3 have only version 4 left.
    assert [row["staleness/max"] for row in rows(config)[1:]] == [0, 1, 2, 2, 0, 1]


def test_a_learner_that_fails_leaves_no_thread(make, thread, monkeypatch):
    def diverged(self, *args):
        raise FloatingPointError("not finite")

    monkeypatch.setattr(Learner, "update", diverged)
    with pytest.raises(FloatingPointError, match="not finite"):
        train(make(*TWO))
    assert not sampling_threads()
