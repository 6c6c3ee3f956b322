"""The whole run in this process, without Ray: what its curve depends on, and on what not."""

import json
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from whole_run import KILLS, TINY, Killed, answers, kill_when

from deltarl.model.checkpoint import load_model
from deltarl.reward.plugin import RewardPluginError
from deltarl.rl import loop
from deltarl.rl.advantages import group_advantages
from deltarl.rl.alerts import LOOK_AT, AlertConfig
from deltarl.rl.checkpoint import CheckpointStore
from deltarl.rl.cli import load_config
from deltarl.rl.collect import Collector
from deltarl.rl.config import RunConfig, SourceConfig
from deltarl.rl.episodes import Episodes
from deltarl.rl.learner import Learner
from deltarl.rl.metrics import MetricsWriter, metric_doc, read_curve, read_jsonl
from deltarl.rl.run_eval import evaluate_checkpoint
from deltarl.rl.run_grpo import main
from deltarl.rl.run_ppo import main as ppo_main
from deltarl.rl.trace import read_trace
from deltarl.rl.train import train


@pytest.fixture
def tiny(tiny):
    return lambda *overrides: tiny("in_process=true", *overrides)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> RunConfig:
    """A run from start to end."""
    config = load_config(TINY, ["in_process=true", f"output_dir={tmp_path_factory.mktemp('reference')}"])
    train(config)
    return config


@pytest.fixture
def again(reference, tmp_path) -> RunConfig:
    """The reference's run, not begun yet but for its starting point."""
    config = load_config(TINY, ["in_process=true", f"output_dir={tmp_path}"])
    shutil.copytree(reference.run_dir / "initial", config.run_dir / "initial")
    return config


def test_a_run_learns_and_leaves_what_it_should(reference):
    rows = read_jsonl(reference.run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "eval/pass@1" in row] == [0, 3, 6]
    assert [row["weights/version"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    for row in rows[1:]:
        assert row["kl/old"] < 1e-8
        assert row["clip/frac_low"] == row["clip/frac_high"] == 0
        assert row["mismatch/logprob_abs_max"] <= 1e-5
        assert row["tokens/completion"] == 16 * row["len/mean"]
    assert sum(row["optim/grad_norm"] > 0 for row in rows[1:]) >= 4  # or the tests below would compare nothing
    assert rows[-1]["tokens/total"] == sum(row["tokens/completion"] for row in rows[1:])
    assert rows[-1]["data/epoch"] == 6 * 4 / 48
    for name in {name for row in rows for name in row} - {"step"}:
        metric_doc(name)
    checkpoints = sorted(f.name for f in (reference.run_dir / "checkpoints").iterdir())
    assert checkpoints == ["best", "latest", "step_000004", "step_000006"]
    assert (reference.run_dir / "report.html").is_file()
    versions = {row["weight_version"] for row in answers(reference.run_dir) if row["split"] == "train"}
    assert versions == {0, 1, 2, 3, 4, 5}


def test_every_call_and_phase_is_in_the_trace_and_idle_times_are_what_they_leave(reference):
    spans = read_trace(reference.run_dir / "trace.json")
    found = Counter((span.worker, span.phase) for span in spans if span.step == 4)
    calls = {("rollout-0", "generate"): 2, ("reward-0", "score"): 1, ("learner-0", "update"): 1}
    phases = {("driver-0", "step"): 1, ("driver-0", "wait_rollout"): 1, ("driver-1", "rollout"): 1}
    assert calls | phases == {key: found[key] for key in calls | phases}
    assert {span.step for span in spans} == set(range(7))
    step = next(span for span in spans if span.phase == "step" and span.step == 4)
    inside = [span for span in spans if span.step == 4 and span.phase in ("generate", "score", "update")]
    assert all(step.start <= span.start <= span.end <= step.end for span in inside)
    row = next(row for row in read_jsonl(reference.run_dir / "metrics.jsonl") if row["step"] == 4)
    assert row["time/step"] == pytest.approx(step.end - step.start, abs=0.02)
    busy = sum(1 - row[f"idle/{fleet}"] for fleet in ("rollout", "reward", "learner"))
    assert 0 < busy <= 1.0  # in one process, one works while the others wait


def test_the_same_seed_gives_the_same_curve_warm_start_included(reference, tiny):
    config = tiny()
    train(config)
    assert read_curve(config.run_dir) == read_curve(reference.run_dir)
    assert answers(config.run_dir) == answers(reference.run_dir)
    sft = [read_jsonl(c.run_dir / "sft" / "metrics.jsonl") for c in (config, reference)]
    assert sft[0] == sft[1]


def test_the_log_shows_what_the_model_sees_before_the_first_step_alone(again, caplog):
    train(again.model_copy(update={"steps": 2}))
    assert caplog.text.count("what the model sees, for training problem 0") == 1
    assert caplog.text.index("what the model sees") < caplog.text.index("held-out pass@1")
    caplog.clear()
    train(again.model_copy(update={"steps": 2}))
    assert "what the model sees" not in caplog.text


def test_alerts_are_logged_once_and_stay_in_the_metrics_also_after_a_resume(reference, again, monkeypatch, caplog):
    config = again.model_copy(update={"alerts": AlertConfig(window=1, reward_drop=1e-9)})
    with monkeypatch.context() as patch:
        kill_when(patch, MetricsWriter, "log", lambda self, step, row: step == 5, True)
        with pytest.raises(Killed):
            train(config)
    train(config)
    rows = read_curve(config.run_dir)[1:]
    rewards = [row["reward/mean"] for row in rows]
    expected = [r < max(rewards[: i + 1]) for i, r in enumerate(rewards)]
    assert [row["alert/reward"] == 1 for row in rows] == expected
    assert any(expected[4:]), "or a resume could not be told from a new start"
    assert LOOK_AT["reward"] in caplog.text


def test_another_seed_gives_another_curve(reference, tiny):
    config = tiny("seed=4", "steps=1")
    shutil.copytree(reference.run_dir / "initial", config.run_dir / "initial")
    train(config)
    assert read_curve(config.run_dir)[1]["entropy"] != read_curve(reference.run_dir)[1]["entropy"]


@pytest.mark.parametrize("moment", KILLS)
def test_a_run_killed_at_any_moment_goes_on_as_if_it_had_not_been(reference, again, monkeypatch, moment):
    with monkeypatch.context() as patch:
        kill_when(patch, *KILLS[moment])
        with pytest.raises(Killed):
            train(again)
    train(again)
    assert read_curve(again.run_dir) == read_curve(reference.run_dir)
    assert answers(again.run_dir) == answers(reference.run_dir)
    models = [load_model(CheckpointStore(c.run_dir, 2).latest()).state_dict() for c in (again, reference)]
    assert all(x.equal(models[1][name]) for name, x in models[0].items())


@pytest.mark.parametrize("lost", [4, 6])
def test_a_run_outlives_a_full_disk_but_does_not_end_without_its_last_checkpoint(
    reference, again, monkeypatch, caplog, lost
):
    def full(self, folder, step, *args, real=CheckpointStore.complete):
        if step == lost:
            raise OSError(28, "No space left on device")
        return real(self, folder, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "complete", full)
        if lost == 6:
            with pytest.raises(OSError, match="the last checkpoint could not be written"):
                train(again)
        else:
            train(again)
    assert "a checkpoint could not be written ([Errno 28] No space left on device); the newest is" in caplog.text
    assert CheckpointStore(again.run_dir, 2).latest().name == ("step_000004" if lost == 6 else "step_000006")
    train(again)
    assert read_curve(again.run_dir) == read_curve(reference.run_dir)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_saves_what_it_did_and_says_how_to_go_on(reference, again, monkeypatch, capsys, number):
    real = Collector.collect

    def collect(self, step):
        if step == 3:
            signal.raise_signal(number)
        return real(self, step)

    command = ["--config", str(TINY), "in_process=true", f"output_dir={again.output_dir}", "checkpoint.interval=100"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a shell ignore it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Collector, "collect", collect)
            assert main(command) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopped; the same command goes on from the last checkpoint" in capsys.readouterr().err
    assert CheckpointStore(again.run_dir, 2).latest().name == "step_000002"
    assert main(command) == 0
    assert read_curve(again.run_dir) == read_curve(reference.run_dir)


def test_a_finished_run_goes_on_for_more_steps(reference, again):
    train(again.model_copy(update={"steps": 4}))
    train(again)
    rows = {row["step"]: row for row in read_curve(again.run_dir)}
    for row in read_curve(reference.run_dir):
        assert row.items() <= rows[row["step"]].items()  # step 4 was evaluated besides, as the last


def test_a_better_policy_is_kept_when_it_is_found(reference, again, monkeypatch):
    found = iter((0.9, 0.5, 0.4))  # before the first step, and at 3 and 6
    real = loop.Loop._evaluate
    monkeypatch.setattr(loop.Loop, "_evaluate", lambda self, step: real(self, step) | {loop.SCORE: next(found)})
    train(again)
    folders = again.run_dir / "checkpoints"
    assert sorted(f.name for f in folders.glob("step_*")) == ["step_000003", "step_000004", "step_000006"]
    assert (folders / "best").resolve().name == "step_000003"


def test_a_finished_run_started_again_stays_as_it_is(reference, again):
    shutil.copytree(reference.run_dir, again.run_dir, dirs_exist_ok=True)
    train(again)
    assert read_curve(again.run_dir) == read_curve(reference.run_dir)
    assert answers(again.run_dir) == answers(reference.run_dir)


def test_run_eval_repeats_the_last_evaluation_of_the_run(reference):
    last = read_jsonl(reference.run_dir / "metrics.jsonl")[-1]
    found = evaluate_checkpoint(reference)
    assert Path(found.pop("checkpoint")).name == "step_000006"
    assert found == {name: x for name, x in last.items() if name.startswith("eval/")}


def test_several_test_sets_are_evaluated_and_leave_the_run_as_it_was(reference, again):
    more = {"hard": SourceConfig(problems=[{"family": "arithmetic", "level": 2}], num_problems=3)}
    config = again.model_copy(update={"data": again.data.model_copy(update={"more_tests": more})})
    train(config)
    rows = read_curve(config.run_dir)
    assert [row["step"] for row in rows if "eval/hard/pass@1" in row] == [0, 3, 6]
    assert [{k: x for k, x in row.items() if "/hard/" not in k} for row in rows] == read_curve(reference.run_dir)
    for name in rows[0].keys() - {"step"}:
        metric_doc(name)
    assert evaluate_checkpoint(config)["eval/hard/pass@2"] == rows[-1]["eval/hard/pass@2"]


PRIORITISED = (
    *("data.sampling.order=prioritised", "data.sampling.measure_samples=2", "data.sampling.max_success=0.9"),
    "data.more_train={other: {problems: [{family: linear, level: 1}], num_problems: 16, weight: 0.5}}",
)


def test_a_run_that_draws_by_success_resumes_exactly_and_measures_once(reference, tiny, tmp_path, monkeypatch):
    # The tiny model solves nothing; that an answer's tokens add up to an even number it does half of the time.
    even = property(lambda self: np.array([[sum(t.token_ids) % 2 == 0 for t in g.outputs] for g in self.groups]))
    monkeypatch.setattr(Episodes, "right", even)
    straight, broken = (tiny(*PRIORITISED, f"output_dir={tmp_path / name}") for name in ("straight", "broken"))
    for config in (straight, broken):
        shutil.copytree(reference.run_dir / "initial", config.run_dir / "initial")
    train(straight)
    with monkeypatch.context() as patch:
        kill_when(patch, MetricsWriter, "log", lambda self, step, row: step == 5, True)
        with pytest.raises(Killed):
            train(broken)
    measured = (broken.run_dir / "difficulty.json").read_bytes()
    assert len(set(json.loads(measured))) == 3  # none, one, both of the two answers
    train(broken)
    assert (broken.run_dir / "difficulty.json").read_bytes() == measured
    assert read_curve(broken.run_dir) == read_curve(straight.run_dir)
    assert answers(broken.run_dir) == answers(straight.run_dir)
    kept = json.loads((CheckpointStore(straight.run_dir, 2).latest() / "draw.json").read_text())
    assert max(map(int, kept)) >= 48  # of the second source too
    assert max(json.loads(measured)[int(i)] for i in kept) <= 0.9


def test_what_was_solved_before_a_resume_decides_what_is_drawn_after_it(reference, tiny, tmp_path, monkeypatch):
    all_or_none = property(
        lambda self: np.array([[sum(g.prompt_token_ids) % 2 == 0] * len(g.outputs) for g in self.groups])
    )
    monkeypatch.setattr(Episodes, "right", all_or_none)
    overrides = ("data.sampling.order=prioritised", "data.sampling.uniform_share=0.001")
    straight, broken = (tiny(*overrides, f"output_dir={tmp_path / name}") for name in ("straight", "broken"))
    drawn = {}
    for config in (straight, broken):
        shutil.copytree(reference.run_dir / "initial", config.run_dir / "initial")
        collect, drawn[config.output_dir] = Collector.collect, {}

        def note(self, step, seen=drawn[config.output_dir], collect=collect):
            collected = collect(self, step)
            seen[step] = collected.problems
            return collected

        with monkeypatch.context() as patch:
            patch.setattr(Collector, "collect", note)
            if config is broken:
                with monkeypatch.context() as kill:
                    kill_when(kill, MetricsWriter, "log", lambda self, step, row: step == 5, True)
                    with pytest.raises(Killed):
                        train(config)
            train(config)
    once, again = drawn.values()
    assert once == again
    assert len({i for problems in once.values() for i in problems}) == 24, "what is always or never solved stays away"


def test_run_eval_without_a_checkpoint_says_so(tiny):
    with pytest.raises(ValueError, match="has no checkpoint; run the recipe first"):
        evaluate_checkpoint(tiny())


PLUGINS = """
def digits(completions, family, **columns):
    assert set(family) == {"arithmetic"}
    return [sum(c.isdigit() for c in text) / 10 for text in completions]

calls = []

def raising(completions, **columns):
    calls.append(1)
    if len(calls) > 3:  # the look before the run, the first evaluation, the first step
        raise KeyError("no such thing")
    return [0.0] * len(completions)

def short(completions, **columns):
    calls.append(1)
    return [0.0] * (len(completions) - (len(calls) > 3))

def at_once(completions, **columns):
    raise TypeError("not like this")
"""


@pytest.fixture
def with_plugin(reference, tmp_path, monkeypatch):
    """`with_plugin(name)`: the tiny run with the verifier and that plug-in of a file, named relative to the cwd."""

    def config(name: str) -> RunConfig:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.py").write_text(PLUGINS)
        recipe = yaml.safe_load(TINY.read_text())
        recipe["reward"]["functions"] = [{"name": "math"}, {"name": name, "function": f"mine.py:{name}", "weight": 0.5}]
        recipe |= {"output_dir": str(tmp_path / "runs"), "steps": 2, "in_process": True}
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        found = load_config(tmp_path / "recipe.yaml")
        shutil.copytree(reference.run_dir / "initial", found.run_dir / "initial")
        return found

    return config


def test_a_plug_in_from_a_file_is_logged_by_its_name_and_counts_by_its_weight(with_plugin):
    config = with_plugin("digits")
    train(config)
    for row in read_jsonl(config.run_dir / "metrics.jsonl")[1:]:
        assert 0 < row["reward/digits/mean"] < 1
        assert row["reward/mean"] == pytest.approx(row["reward/math/mean"] + 0.5 * row["reward/digits/mean"])


@pytest.mark.parametrize(
    ("name", "told"),
    [("raising", "reward 'raising' raised KeyError: 'no such thing'"), ("short", "'short' returned 15 scores for 16")],
)
def test_a_plug_in_that_fails_is_named_and_what_there_was_is_kept(with_plugin, name, told):
    config = with_plugin(name)
    with pytest.raises(RewardPluginError) as error:
        train(config)
    assert told in str(error.value)
    assert [row["step"] for row in read_jsonl(config.run_dir / "metrics.jsonl")] == [0, 1]
    assert [c.name for c in (config.run_dir / "checkpoints").glob("step_*")] == ["step_000001"]
    assert (config.run_dir / "report.html").is_file()


def test_a_plug_in_that_fails_at_the_first_answers_is_named_too(with_plugin):
    with pytest.raises(RewardPluginError, match="reward 'at_once' raised TypeError: not like this"):
        train(with_plugin("at_once"))


def test_the_command_refuses_bad_data_and_a_foreign_folder_in_one_line(tiny, capsys, tmp_path):
    arguments = ["--config", str(TINY), "in_process=true", f"output_dir={tmp_path / 'runs'}"]
    assert main([*arguments, "data.max_prompt_tokens=2"]) == 2
    assert "error: data.train: row 0: the prompt has" in capsys.readouterr().err
    assert main([*arguments, "data.max_prompt_tokens=3"]) == 2, "nothing was computed: the folder is free"
    assert "error: data.train: row 0: the prompt has" in capsys.readouterr().err
    (tmp_path / "runs" / yaml.safe_load(TINY.read_text())["name"] / "initial").mkdir()
    assert main([*arguments, "data.max_prompt_tokens=4"]) == 2
    message = capsys.readouterr().err
    assert "data.max_prompt_tokens: 3 there, 4 here" in message
    assert message.count("\n") == 1


KL_IN_REWARD = (
    *("algorithm=rloo", "learner.beta=0.5", "learner.kl_target=0.01", "learner.kl_horizon=5"),
    *("learner.reference_interval=3", "learner.learning_rate=3e-3", "learner.warmup_steps=0"),
)
IMITATING = (
    *("learner.ptx_weight=0.1", "learner.ptx_batch_size=3", "rollout.max_tokens=20", "learner.correction=token_mask"),
)
DYNAMIC = ("algorithm=dapo", "rollout.num_generations=2", "learner.num_minibatches=2")
PPO = (
    *("algorithm=ppo", "learner.beta=0.05", "learner.num_minibatches=2", "rollout.num_generations=1"),
    *("learner.critic.warmup_updates=2", "learner.critic.lam=0.9", "learner.learning_rate=3e-3"),
)
FEWER_UPDATES = ("learner.min_entropy=100", "learner.num_minibatches=4")
OTHERS = {
    "fewer updates": FEWER_UPDATES,
    "kl in reward": KL_IN_REWARD,
    "dynamic sampling": DYNAMIC,
    "imitating": IMITATING,
    "critic": PPO,
    "critic on the policy's trunk": (*PPO, "learner.critic.trunk=shared"),
}


@pytest.fixture(scope="module", params=OTHERS.values(), ids=OTHERS)
def other(request, reference, tmp_path_factory) -> RunConfig:
    """A run of another algorithm, from the reference's starting point."""
    config = load_config(TINY, ["in_process=true", f"output_dir={tmp_path_factory.mktemp('other')}", *request.param])
    shutil.copytree(reference.run_dir / "initial", config.run_dir / "initial")
    train(config)
    return config


def test_other_algorithms_leave_documented_metrics_and_resume_exactly(other, tmp_path, monkeypatch):
    rows = read_curve(other.run_dir)[1:]
    for name in {name for row in rows for name in row} - {"step"}:
        metric_doc(name)
    if other.algorithm == "rloo":
        betas = [row["kl/beta"] for row in rows]
        assert betas[0] == 0.5
        assert betas[1] == pytest.approx(0.5 * (1 - 0.2 / 5))  # no KL yet: far below its target
        assert len(set(betas)) == len(betas)
        assert [row["kl/ref"] == pytest.approx(0, abs=1e-6) for row in rows] == [True, False, False] * 2
        assert all(row["kl/penalty"] == pytest.approx(row["kl/beta"] * row["kl/ref"] * row["len/mean"]) for row in rows)
    elif other.algorithm == "ppo":
        assert [row["kl/ref"] == pytest.approx(0, abs=1e-6) for row in rows] == [True] * 3 + [False] * 3  # warm-up
        assert rows[0]["value/mean"] == 0 != rows[1]["value/mean"]
        assert all(row["loss/value"] > 0 for row in rows)
        assert all(row["value/explained_variance"] <= 1 for row in rows if row["value/explained_variance"] is not None)
    elif other.learner.min_entropy:
        assert [row["optim/updates"] for row in rows] == [4, 3, 2, 1, 1, 1]
    elif other.algorithm == "grpo":
        assert all(row["loss/ptx"] > 0 for row in rows)
        assert all(row["clip/frac_corrected"] == 0 for row in rows)  # our sampler needs no correction
    else:
        assert {row["group/refills"] for row in rows} <= {0, 1, 2, 3}
        assert max(row["group/refills"] for row in rows) > 0
        assert all(0 <= row["group/kept_frac"] <= 1 for row in rows)
        assert any(row["tokens/completion"] > 4 * 2 * row["len/mean"] for row in rows)  # more than 4 problems
        assert "reward/overlong/mean" in rows[0]
    again = other.model_copy(update={"output_dir": str(tmp_path)})
    shutil.copytree(other.run_dir / "initial", again.run_dir / "initial")
    with monkeypatch.context() as patch:
        kill_when(patch, MetricsWriter, "log", lambda self, step, row: step == 5, True)
        with pytest.raises(Killed):
            train(again)
    train(again)
    assert read_curve(again.run_dir) == read_curve(other.run_dir)


def test_run_ppo_refuses_a_recipe_without_a_critic_and_runs_one_with(reference, tiny, capsys, tmp_path):
    arguments = ["--config", str(TINY), "in_process=true", f"output_dir={tmp_path / 'runs'}", "steps=1"]
    assert ppo_main(arguments) == 2
    assert "algorithm = 'grpo' has no critic" in capsys.readouterr().err
    shutil.copytree(reference.run_dir / "initial", tmp_path / "runs" / "tiny" / "initial")
    assert ppo_main([*arguments, "algorithm=ppo"]) == 0
    assert "loss/value" in read_curve(tmp_path / "runs" / "tiny")[1]


def test_dynamic_sampling_learns_from_as_many_informative_groups_as_it_finds(reference, tiny, monkeypatch):
    config = tiny(*DYNAMIC, "steps=3", "rollout.max_refills=2", "reward.overlong_fraction=0")
    shutil.copytree(reference.run_dir / "initial", config.run_dir / "initial")
    batches, counts = [], []
    update, collect_round = Learner.update, Collector._round

    def keep(self, share, *args):
        batches.append([s for minibatch in share for s in minibatch.samples])
        return update(self, share, *args)

    def count(self, step, refill, wanted, drawn):
        episodes = collect_round(self, step, refill, wanted, drawn)
        counts.append((step, refill, wanted, int(episodes.informative.sum()), [p.row for p in episodes.prompts]))
        return episodes

    monkeypatch.setattr(Learner, "update", keep)
    monkeypatch.setattr(Collector, "_round", count)
    train(config)
    rows = read_curve(config.run_dir)[1:]
    for step, (samples, row) in enumerate(zip(batches, rows, strict=True), 1):
        rounds = [c for c in counts if c[0] == step]
        found = sum(informative for *_, informative, _ in rounds)
        assert [c[1] for c in rounds] == list(range(len(rounds)))
        wanted = [4]
        for *_, informative, _ in rounds[:-1]:
            wanted.append(wanted[-1] - informative)
        assert [c[2] for c in rounds] == wanted
        assert found == 4 or len(rounds) == 3
        drawn = [rows for *_, rows in rounds]
        assert all(later != drawn[0][: len(later)] for later in drawn[1:]), "a refill must not draw the same again"
        assert len(samples) == 2 * max(1, found)
        if found:
            assert all(s.advantages[0] != 0 for s in samples)
        assert row["group/refills"] == len(rounds) - 1


def test_the_kl_of_an_answer_is_taken_off_its_score(reference, tiny, monkeypatch):
    config = tiny("algorithm=rloo", "learner.beta=0.25", "steps=1")
    shutil.copytree(reference.run_dir / "initial", config.run_dir / "initial")
    seen = {}
    update, collect = Learner.update, Collector.collect

    def keep(self, share, beta):
        seen["advantages"] = [s.advantages[0] for minibatch in share for s in minibatch.samples]
        return update(self, share, beta)

    def note(self, step):
        collected = collect(self, step)
        seen["scores"] = collected.episodes.scores
        return collected

    # All at one token: it is the sum over an answer that counts.
    monkeypatch.setattr(
        Learner,
        "token_kl",
        lambda self, samples: [[float(i), *[0.0] * (len(s.completion_ids) - 1)] for i, s in enumerate(samples)],
    )
    monkeypatch.setattr(Learner, "update", keep)
    monkeypatch.setattr(Collector, "collect", note)
    train(config)
    penalised = seen["scores"] - 0.25 * np.arange(16.0).reshape(4, 4)
    expected = group_advantages(penalised, "none", baseline="leave_one_out")
    np.testing.assert_allclose(seen["advantages"], expected.ravel())
    (row,) = read_curve(config.run_dir)[1:]
    assert row["kl/penalty"] == pytest.approx(0.25 * 7.5)
    assert row["kl/ref"] == pytest.approx(120 / row["tokens/completion"])
