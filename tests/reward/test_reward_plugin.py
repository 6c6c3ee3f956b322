"""Plug-ins, and the scorer that adds them up."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deltarl.reward
from deltarl.reward.batch import Batch, TrainerState
from deltarl.reward.call import Plugin
from deltarl.reward.log import RewardLog
from deltarl.reward.plugin import ENTRY_POINTS, RewardPluginError, load_reward
from deltarl.reward.rewards import RewardSpec, Scorer
from deltarl.reward.verdict import VerdictKind


def call_reward(
    fn: Callable[..., Any], prompts: list[Any], completions: list[str], columns: dict[str, list[Any]]
) -> list[float | None]:
    return Plugin(fn).score(Batch(prompts, completions, columns))


EXAMPLE = str(Path(deltarl.reward.__path__[0]) / "examples" / "format_reward.py")


@pytest.mark.parametrize("source", [EXAMPLE, "deltarl.reward.examples.format_reward"])
def test_example_loads_by_path_and_by_module(source: str) -> None:
    fn = load_reward(f"{source}:format_reward")
    completions = [r"\boxed{1}", r"\boxed{1} \boxed{2}", "none"]
    assert call_reward(fn, ["?"] * 3, completions, {"answer": ["1"] * 3}) == [0.1, 0.0, 0.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("format_rewards", "'format_rewards' is not known: the names are math, exact_match, format_tags, kimi_length"),
        (":f", "not of the form"),
        ("module:", "not of the form"),
        ("missing.py:f", "'missing.py' does not exist"),
        ("no.such.module:f", "'no.such.module' fails to import"),
        (f"{EXAMPLE}:formt_reward", "no 'formt_reward' in .* it has format_reward"),
        (f"{EXAMPLE}:__doc__", "'__doc__' is a str, not a function"),
    ],
)
def test_load_errors_say_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(RewardPluginError, match=message):
        load_reward(spec)


def test_a_file_that_fails_to_import(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_this_name\n")
    with pytest.raises(RewardPluginError, match=r"broken.py' fails to import.*nothing_of_this_name") as caught:
        load_reward(f"{path}:f")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_two_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    functions = []
    for value in (1, 2):
        folder = tmp_path / str(value)
        folder.mkdir()
        (folder / "same.py").write_text(f"VALUE = {value}\ndef f(completions):\n    return [VALUE]\n")
        functions.append(load_reward(f"{folder / 'same.py'}:f"))
    assert [call_reward(fn, ["?"], [""], {}) for fn in functions] == [[1.0], [2.0]]


def test_only_accepted_columns_are_passed() -> None:
    seen: list[dict[str, Any]] = []

    def few(completions: list[str], answer: list[str], level: list[int] | None = None) -> list[float]:
        seen.append({"answer": answer, "level": level})
        return [0.0] * len(completions)

    def all_of_them(**columns: Any) -> list[float]:
        seen.append(columns)
        return [0.0]

    columns = {"answer": ["1"], "source": ["web"]}
    call_reward(few, ["?"], ["!"], columns)
    call_reward(all_of_them, ["?"], ["!"], columns)
    assert seen == [{"answer": ["1"], "level": None}, {"prompts": ["?"], "completions": ["!"], **columns}]


def test_a_parameter_that_is_no_column_is_named() -> None:
    def needs_rubric(completions: list[str], rubric: list[str]) -> list[float]:
        raise AssertionError

    with pytest.raises(RewardPluginError, match=r"'needs_rubric' needs 'rubric'.*available: answer, completions"):
        call_reward(needs_rubric, ["?"], ["!"], {"answer": ["1"]})


def test_an_exception_names_plugin_and_sample_and_is_chained() -> None:
    def lengths(completions: list[str], answer: list[str]) -> list[float]:
        return [1 / len(completion) for completion in completions]

    with pytest.raises(RewardPluginError, match=r"'lengths' raised ZeroDivisionError.*sample 2: ''") as caught:
        call_reward(lengths, ["?"] * 3, ["a", "b", ""], {"answer": ["1"] * 3})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_sample_far_down_the_batch_is_named() -> None:
    def lengths(completions: list[str]) -> list[float]:
        return [1 / len(completion) for completion in completions]

    with pytest.raises(RewardPluginError, match=r"sample 300: ''"):
        call_reward(lengths, ["?"] * 400, ["a"] * 300 + [""] + ["a"] * 99, {})


def test_a_function_that_leaves_samples_out_is_told_which() -> None:
    def boxed_only(completions: list[str]) -> list[float]:
        return [1.0 for completion in completions if "boxed" in completion]

    with pytest.raises(RewardPluginError, match=r"returned 2 scores for 3 completions \(on sample 1: 'none'\)"):
        call_reward(boxed_only, ["?"] * 3, ["boxed", "none", "boxed"], {})

    with pytest.raises(RewardPluginError, match=r"returned 1 scores for 2 completions \(no score for sample 1: 'b'\)"):
        call_reward(lambda completions: [1.0], ["?"] * 2, ["a", "b"], {})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "returned 1 scores for 2 completions"),
        (1.0, "returned a float; it must return a list of 2 floats"),
        ("ab", "returned a str"),
        ({0: 1.0, 1: 1.0}, "returned a dict"),
        ([1.0, "1"], "returned a str for sample 1"),
        ([1.0, float("nan")], "returned nan for sample 1"),
        ([float("inf"), 1.0], "returned inf for sample 0"),
        ([1.0, [1.0]], "returned a list for sample 1"),
    ],
)
def test_bad_returns_are_refused(returned: Any, message: str) -> None:
    with pytest.raises(RewardPluginError, match=message):
        call_reward(lambda completions: returned, ["?"] * 2, ["!"] * 2, {})


@pytest.mark.parametrize(
    "returned",
    [
        [True, None],
        (np.float32(1.0), None),
        [torch.tensor(1.0), None],
    ],
)
def test_scalars_of_other_libraries_are_floats(returned: Any) -> None:
    scores = call_reward(lambda completions: returned, ["?"] * 2, ["!"] * 2, {})
    assert scores == [1.0, None]
    assert type(scores[0]) is float


def test_whole_tensor_is_accepted() -> None:
    tensor: Any = torch.ones(2)
    assert call_reward(lambda completions: tensor, ["?"] * 2, ["!"] * 2, {}) == [1.0, 1.0]


@pytest.fixture
def skipper(tmp_path: Path) -> str:
    path = tmp_path / "skipper.py"
    path.write_text("def skip(completions):\n    return [None for _ in completions]\n")
    return f"{path}:skip"


def test_scorer_adds_weighted_components(skipper: str) -> None:
    rewards = [
        RewardSpec("math", weight=2.0),
        RewardSpec("format", f"{EXAMPLE}:format_reward"),
        RewardSpec("s", skipper),
    ]
    scorer = Scorer(rewards)
    report = scorer.score(["?"] * 2, [r"\boxed{1}", "none"], {"answer": ["1", r"\bad"]})
    assert report.scores == [2.1, 0.0]
    assert report.components == {"math": [1.0, None], "format": [0.1, 0.0], "s": [None, None]}
    assert report.verdicts is not None
    assert [verdict.kind for verdict in report.verdicts] == [VerdictKind.RIGHT, VerdictKind.ERROR]
    assert pickle.loads(pickle.dumps(report)) == report


def test_a_sample_no_reward_scores_is_skipped(skipper: str) -> None:
    report = Scorer([RewardSpec("s", skipper)]).score(["?"], ["!"], {})
    assert (report.scores, report.verdicts) == ([None], None)


def test_scorer_survives_pickling() -> None:
    scorer = Scorer([RewardSpec("math"), RewardSpec("format", f"{EXAMPLE}:format_reward")], gold_column="gold")
    batch = (["?"], [r"\boxed{1}"], {"gold": ["1"]})
    assert pickle.loads(pickle.dumps(scorer)).score(*batch).scores == scorer.score(*batch).scores == [1.1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scorer([]), "at least one"),
        (lambda: Scorer([RewardSpec("a"), RewardSpec("a", f"{EXAMPLE}:format_reward")]), "distinct"),
        (lambda: Scorer([RewardSpec("a"), RewardSpec("b")]), "more than once"),
        (lambda: Scorer([RewardSpec("a")]).score(["?"], ["!"], {"gold": ["1"]}), "column 'answer'; the data has gold"),
        (lambda: Scorer([RewardSpec("a")]).score(["?"], ["!"], {"answer": []}), "1 completions, but .*'answer': 0"),
    ],
)
def test_scorer_refuses_nonsense(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def shaped(completions: list[str], bonus: float, scale: float = 1.0) -> list[float]:
    return [bonus * scale for _ in completions]


def test_parameters_are_set_and_a_wrong_one_is_refused_at_the_start() -> None:
    assert Plugin(shaped, "s", {"bonus": 2.0, "scale": 3.0}).score(Batch(["?"], ["!"])) == [6.0]
    with pytest.raises(RewardPluginError, match=r"'s' has no parameter 'scael' to set; did you mean 'scale'\?"):
        Plugin(shaped, "s", {"scael": 3.0})
    with pytest.raises(
        RewardPluginError, match=r"'s' needs 'bonus', which is no dataset column and not among its args"
    ):
        Plugin(shaped, "s").score(Batch(["?"], ["!"]))
    with pytest.raises(RewardPluginError, match="'completions' is positional-only"):
        Plugin(lambda completions, /: [0.0], "p")
    with pytest.raises(ValueError, match="'math' takes no args"):
        Scorer([RewardSpec("math", args={"bonus": 1})])


class Offer:
    """An installed distribution's entry point, as `importlib.metadata` shows it."""

    def __init__(self, name: str, module: str, attr: str) -> None:
        self.name, self.module, self.attr = name, module, attr


def test_a_package_offers_a_reward_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    offers = [
        Offer("theirs", "deltarl.reward.examples.format_reward", "format_reward"),
        Offer("twice", "a", "f"),
        Offer("twice", "b", "f"),
        Offer("kimi_length", "c", "f"),
    ]

    def entry_points(group: str, name: str | None = None) -> list[Offer]:
        assert group == ENTRY_POINTS
        return [offer for offer in offers if name in (None, offer.name)]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    assert load_reward("theirs").__name__ == "format_reward"
    with pytest.raises(RewardPluginError, match="'twice' is offered more than once; write out one of a:f, b:f"):
        load_reward("twice")
    with pytest.raises(RewardPluginError, match=r"one of c:f, deltarl.reward.shaping:kimi_length"):
        load_reward("kimi_length")
    with pytest.raises(RewardPluginError, match=r"'their' is not known: the names are .*theirs, twice"):
        load_reward("their")


def test_what_a_plug_in_logs_is_reported_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "logs.py"
    path.write_text(
        "def logs(completions, trainer_state, verdicts, log_metric, log_extra):\n"
        "    log_metric('step', trainer_state.global_step)\n"
        "    log_metric('step', trainer_state.max_steps)\n"
        "    log_extra('kind/first', [verdict.kind for verdict in verdicts])\n"
        "    return [0.0 for _ in completions]\n"
    )
    scorer = Scorer([RewardSpec("mine", f"{path}:logs"), RewardSpec("math")])
    report = scorer.score(["?"] * 2, [r"\boxed{1}", "none"], {"answer": ["1", "1"]}, TrainerState(3, 9))
    assert report.metrics == {"mine/step": [3.0, 9.0]}
    assert report.extras == {"mine/kind_first": ["right", "no_answer"]}
    assert report.components == {"mine": [0.0, 0.0], "math": [1.0, 0.0]}
    with pytest.raises(RewardPluginError, match=r"'mine' needs 'verdicts'.*add {name: math, function: math}"):
        Scorer([RewardSpec("mine", f"{path}:logs")]).score(["?"], ["!"], {})


def test_a_column_logged_for_other_than_every_completion_is_refused() -> None:
    def short(completions: list[str], log_extra: Callable[..., None]) -> list[float]:
        log_extra("x", [1])
        return [0.0, 0.0]

    with pytest.raises(RewardPluginError, match=r"log_extra\('x'\) got 1 values for 2 completions"):
        call_reward(short, ["?"] * 2, ["!"] * 2, {})


def test_logged_values_are_ones_that_json_can_hold() -> None:
    log = RewardLog(5)
    log.extra("x", [np.float32(0.5), float("nan"), torch.tensor([2]), {"a": 1}, "text"])
    assert log.extras == {"x": [0.5, None, 2, "{'a': 1}", "text"]}
