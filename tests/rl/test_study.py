"""The paired study: equal arms, the same work whatever stops it, and differences that say how sure they are."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from whole_run import TINY

from deltarl.rl.cli import ConfigError
from deltarl.rl.flops import forward_flops
from deltarl.rl.in_process import InProcess
from deltarl.rl.metrics import OF_THE_MACHINE, read_curve
from deltarl.rl.run_study import main
from deltarl.rl.study import runs
from deltarl.rl.study.arms import combinations, make_arms, run_config
from deltarl.rl.study.compare import ArmResult, compare
from deltarl.rl.study.config import StudyConfig, load_study
from deltarl.rl.study.curves import RunCurves, band
from deltarl.rl.study.worker import StudyWorker

BASIC: dict[str, Any] = {
    "name": "study",
    "recipe": str(TINY),
    "baseline": "attention",
    "arms": {
        "kda": {},
        "attention": {"model.full_attention_every": 1},
        "gdn": {"model.linear_attention": "gdn"},
    },
    "seeds": [0, 1],
    "set": {"steps": 2, "eval.interval": 1, "sft.steps": 2},
    "final": {"num_problems": 6, "num_samples": 2},
    "decode": {"contexts": [8, 40], "num_sequences": 3, "num_tokens": 2},
}


def study_file(folder: Path, **changes: Any) -> Path:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(BASIC | {"output_dir": str(folder)} | changes, sort_keys=False))
    return file


@pytest.fixture
def study(tmp_path) -> StudyConfig:
    return load_study(study_file(tmp_path))


@pytest.fixture(scope="module")
def one_process():
    """Workers as plain objects; Ray is another test's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "Fleet", lambda name, spec, size: InProcess(spec, size))
        patch.setattr(runs.runtime, "start", lambda cpus, gpus: None)
        patch.setattr(runs.runtime, "stop", lambda: None)
        before = logging.getLogger().handlers[:]
        yield
        logging.getLogger().handlers[:] = before


@pytest.fixture(scope="module")
def finished(tmp_path_factory, one_process) -> Path:
    folder = tmp_path_factory.mktemp("study")
    sweep = {"values": {"learner.learning_rate": [1e-3, 2e-3]}, "seeds": [7], "steps": 1}
    arms = {name: BASIC["arms"][name] for name in ("kda", "attention")}
    assert main([str(study_file(folder, sweep=sweep, arms=arms))]) == 0
    return folder / "study"


def test_arms_have_the_baselines_parameters(study):
    arms = make_arms(study)
    sizes = {arm.name: arm.parameters for arm in arms}
    assert all(abs(size / sizes["attention"] - 1) <= 0.01 for size in sizes.values())
    assert len({arm.keys.get("model.intermediate_size") for arm in arms}) > 1  # they would not have them by themselves


def test_arms_that_cannot_be_made_equal_are_refused(tmp_path):
    arms = {"attention": {"model.full_attention_every": 1}, "large": {"model.hidden_size": 128}}
    with pytest.raises(ConfigError, match=r"arm large has .* no value comes within 1%"):
        make_arms(load_study(study_file(tmp_path, arms=arms)))
    with pytest.raises(ConfigError, match=r"num_experts_per_token does not change the number"):
        make_arms(load_study(study_file(tmp_path, match_key="model.num_experts_per_token")))


@pytest.mark.parametrize("key", ["rollout.dynamic_sampling", "data.sampling.measure_samples"])
def test_problems_chosen_by_what_the_policy_solves_are_refused(tmp_path, key):
    with pytest.raises(ConfigError, match=rf"{key} = .* each arm would get others"):
        make_arms(load_study(study_file(tmp_path, set={key: True if "dynamic" in key else 2})))


def test_arms_may_differ_in_size_where_that_is_wanted(tmp_path):
    study = load_study(study_file(tmp_path, match_key=None))
    assert len({arm.parameters for arm in make_arms(study)}) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "mamba"}, "baseline = 'mamba' is none of the arms"),
        ({"seeds": [1, 1]}, "has a seed twice"),
        ({"sweep": {"values": {"learner.learning_rate": [1.0]}, "seeds": [1], "steps": 2}}, r"share \[1\]"),
        ({"arms": {"one": {}}, "baseline": "one"}, "arms"),
        ({"seed": [0]}, "seed: Extra inputs"),
        (
            {"sweep": {"values": {"sft.steps": [1]}, "seeds": [9], "steps": 2}},
            "sft.steps, which makes another starting",
        ),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_study(study_file(tmp_path, **changes))


def test_a_bad_key_of_an_arm_is_refused_before_anything_starts(tmp_path, one_process, capsys):
    arms = {"attention": {"model.full_attention_every": 1}, "kda": {"model.hiden_size": 32}}
    assert main([str(study_file(tmp_path, arms=arms))]) == 2
    assert "did you mean 'model.hidden_size'" in capsys.readouterr().err
    assert not list((tmp_path / "study").glob("warm/*"))


def test_runs_of_a_seed_differ_in_the_arm_alone(study):
    kda, attention = (run_config(study, study.arms[name], 5, "runs", name) for name in ("kda", "attention"))
    one, other = kda.model_dump(), attention.model_dump()
    differ = {key for key in one if one[key] != other[key]}
    assert differ == {"name", "model"}
    assert kda.seed == 5
    assert kda.in_process


def test_combinations_are_all():
    found = combinations({"a": [1, 2], "b": [3, 4]})
    assert found == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]


def test_a_study_leaves_its_report(finished):
    assert {"study.html", "points.csv", "result.json", "sweep.json", "accuracy.png", "decode.svg"} <= {
        path.name for path in finished.iterdir()
    }
    result = json.loads((finished / "result.json").read_text())
    assert [arm["name"] for arm in result["arms"]] == ["kda", "attention"]
    for arm in result["arms"]:
        rights = [json.loads((finished / f"runs/{arm['name']}-s{s}/final.json").read_text()) for s in (0, 1)]
        by_seed = [np.mean(r["found"]["right"]) / 2 for r in rights]
        assert arm["by_seed"] == pytest.approx(by_seed)
        assert arm["accuracy"] == pytest.approx(np.mean(by_seed))
    kda, attention = result["decode"]["kda"], result["decode"]["attention"]
    assert kda[1]["bytes"] - kda[0]["bytes"] < attention[1]["bytes"] - attention[0]["bytes"]
    assert all(row["tokens_per_s"] > 0 for rows in (kda, attention) for row in rows)
    header, *points = (finished / "points.csv").read_text().splitlines()
    assert header == "arm,seed,step,tokens,flops,seconds,metric,value"
    assert any(",eval/pass@1," in point for point in points)
    page = (finished / "study.html").read_text()
    assert result["differences"][0]["verdict"] in page
    assert "://" not in page.split("<script")[0]  # it loads nothing


def test_the_sweep_chooses_by_training_reward_and_its_choice_is_used(finished):
    sweep = json.loads((finished / "sweep.json").read_text())
    assert len(sweep["trials"]) == 4
    for arm in ("kda", "attention"):
        mine = [trial for trial in sweep["trials"] if trial["arm"] == arm]
        best = max(mine, key=lambda trial: trial["mark"])["keys"]["learner.learning_rate"]
        assert sweep["best"][arm]["learner.learning_rate"] == best
        config = yaml.safe_load((finished / f"runs/{arm}-s0/config.yaml").read_text())
        assert config["learner"]["learning_rate"] == best


def test_arms_of_a_seed_see_the_same_problems(finished):
    def prompts(arm: str) -> list[str]:
        lines = (finished / f"runs/{arm}-s0/samples.jsonl").read_text().splitlines()
        return [json.loads(line)["prompt"] for line in lines]

    assert prompts("kda") == prompts("attention")


def test_the_same_command_does_what_is_left(finished, one_process, monkeypatch):
    trained = list[str]()
    real = StudyWorker.run

    def noting(self: StudyWorker, config: Any, *rest: Any) -> None:
        before = (config.run_dir / "final.json").exists()
        real(self, config, *rest)
        if rest[-1] and not before:
            trained.append(config.name)

    monkeypatch.setattr(StudyWorker, "run", noting)
    lost = finished / "runs/kda-s1"
    old, points = read_curve(lost), (finished / "points.csv").read_text()
    for file in ("metrics.jsonl", "final.json", "samples.jsonl"):
        (lost / file).unlink()
    for folder in sorted(lost.glob("checkpoints/*")):
        folder.rename(folder.with_name(f".partial_{folder.name}"))
    assert main([str(finished.parent / "study.yaml")]) == 0
    assert trained == ["kda-s1"]
    assert read_curve(lost) == old

    def without_times(text: str) -> list[str]:
        rows = [line.split(",") for line in text.splitlines()]
        return [",".join(row[:4] + row[6:]) for row in rows if not row[6].startswith((*OF_THE_MACHINE, "verdict/"))]

    assert without_times((finished / "points.csv").read_text()) == without_times(points)


def test_a_study_that_was_changed_does_not_show_the_old_one(finished, one_process, capsys):
    study = yaml.safe_load((finished.parent / "study.yaml").read_text())
    study["arms"]["kda"] = {"learner.beta": 0.1}
    changed = finished.parent / "changed.yaml"
    changed.write_text(yaml.safe_dump(study, sort_keys=False))
    assert main([str(changed)]) == 2
    assert "holds a run with another configuration (learner.beta: 0.0 there, 0.1 here)" in capsys.readouterr().err


def test_more_steps_are_trained_and_evaluated_again(finished, one_process):
    study = yaml.safe_load((finished.parent / "study.yaml").read_text())
    study["set"]["steps"] = 3
    longer = finished.parent / "longer.yaml"
    longer.write_text(yaml.safe_dump(study, sort_keys=False))
    assert main([str(longer), "--report-only"]) == 2
    assert main([str(longer)]) == 0
    assert {json.loads(file.read_text())["step"] for file in finished.glob("runs/*/final.json")} == {3}


def test_a_trial_that_diverges_is_the_worst(finished, one_process, monkeypatch, tmp_path):
    def diverging(self: StudyWorker, config: Any, *rest: Any) -> None:
        raise FloatingPointError("not finite")

    study = load_study(finished.parent / "study.yaml")
    config = run_config(study, {}, 0, "sweep", "x")
    with monkeypatch.context() as patch:
        patch.setattr(StudyWorker, "run", diverging)
        assert StudyWorker().trial(config, tmp_path) is None
    trials = [{"keys": {"lr": 1}, "mark": None}, {"keys": {"lr": 2}, "mark": -5.0}]
    assert runs._best(trials) == {"lr": 2}


def result(name: str, right: Sequence[Sequence[float]]) -> ArmResult:
    array = np.array(right)
    return ArmResult(name, array, float(array.mean()), 0.0, {})


def test_a_clear_difference_is_called_one():
    rng = np.random.default_rng(0)
    low = rng.random((8, 200)) * 0.5
    found = compare(result("kda", low + 0.1 + rng.normal(0, 0.05, (8, 200))), result("attention", low), False)
    assert found.mean == pytest.approx(0.1, abs=0.01)
    assert found.low < found.mean < found.high
    assert found.wins == 8
    assert found.verdict.startswith(f"kda ahead of attention by {100 * found.mean:.1f} points")
    assert "8 seeds" in found.verdict


def test_seeds_that_disagree_are_no_difference():
    base = np.full((3, 100), 0.5)
    found = compare(result("kda", base + np.array([[0.2], [-0.1], [0.1]])), result("attention", base), False)
    assert found.verdict.startswith("kda and attention are not told apart")
    assert "ahead in 2 of 3 seeds" in found.verdict


def test_few_seeds_that_agree_are_not_trusted_beyond_students_interval():
    base = np.full((3, 100), 0.5)
    found = compare(result("kda", base + np.array([[0.02], [0.2], [0.05]])), result("attention", base), False)
    assert found.bootstrap[0] > 0
    assert found.low == found.student[0] < 0
    assert "not told apart" in found.verdict


@pytest.mark.parametrize("shared", [False, True])
def test_the_interval_covers_the_truth_as_often_as_it_says(shared, monkeypatch):
    monkeypatch.setattr("deltarl.rl.study.compare.RESAMPLES", 1000)
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        effects = rng.normal(0.05, 0.04, (8, 1))
        paired = effects + rng.normal(
            0, 0.3, (1 if shared else 8, 50)
        )  # problems are hard for one arm and not the other
        found = compare(result("a", paired), result("b", np.zeros((8, 50))), shared)
        covered += found.low <= 0.05 <= found.high
    assert 50 <= covered <= 60


def test_one_seed_says_nothing_about_others():
    found = compare(result("kda", [[1.0, 1.0]]), result("attention", [[0.0, 0.0]]), False)
    assert "not told apart" in found.verdict
    assert "one seed says nothing" in found.verdict


def run_curves(seed: int, x: Sequence[float], y: Sequence[float]) -> RunCurves:
    return RunCurves("a", seed, {"tokens": np.array(x)}, {"m": (np.arange(len(y)), np.array(y))})


def test_a_band_is_the_mean_where_all_seeds_are():
    found = band([run_curves(0, [0.0, 10.0], [0.0, 1.0]), run_curves(1, [0.0, 20.0], [0.0, 1.0])], "tokens", "m")
    assert found is not None
    assert found.x[-1] == 10
    assert found.mean[-1] == pytest.approx(0.75)  # (1 + 0.5) / 2
    half = 12.706 * 0.25  # Student's for one degree of freedom, times the standard error
    assert (found.low[-1], found.high[-1]) == pytest.approx((0.75 - half, 0.75 + half), rel=1e-3)
    assert band([run_curves(0, [0.0], [0.0])], "tokens", "none") is None


def test_flops_are_those_of_the_matrices_and_of_attention(study):
    from deltarl.model.config import hybrid_config

    def config(**changes: Any) -> Any:
        return hybrid_config(vocab_size=50, **run_config(study, changes, 0, "runs", "x").model.sizes)

    wider = forward_flops(config(**{"model.intermediate_size": 65}), 100)
    assert wider - forward_flops(config(**{"model.intermediate_size": 64}), 100) == 2 * 2 * 3 * 32  # layers, matrices
    hybrid = config()  # one layer of two is full attention
    assert forward_flops(hybrid, 300) - forward_flops(hybrid, 100) == 200 * 2 * (8 + 8 + 16)
