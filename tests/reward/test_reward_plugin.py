"""Plug-ins, and the scorer that adds them up."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deltarl.reward
from deltarl.reward.plugin import RewardPluginError, call_reward, load_reward
from deltarl.reward.rewards import RewardSpec, Scorer
from deltarl.reward.verdict import VerdictKind

EXAMPLE = str(Path(deltarl.reward.__path__[0]) / "examples" / "format_reward.py")


@pytest.mark.parametrize("source", [EXAMPLE, "deltarl.reward.examples.format_reward"])
def test_example_loads_by_path_and_by_module(source: str) -> None:
    fn = load_reward(f"{source}:format_reward")
    completions = [r"\boxed{1}", r"\boxed{1} \boxed{2}", "none"]
    assert call_reward(fn, ["?"] * 3, completions, {"answer": ["1"] * 3}) == [0.1, 0.0, 0.0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("format_reward", "not of the form"),
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
    def needs_solution(completions: list[str], solution: list[str]) -> list[float]:
        raise AssertionError

    with pytest.raises(RewardPluginError, match=r"'needs_solution' needs 'solution'.*available: answer, completions"):
        call_reward(needs_solution, ["?"], ["!"], {"answer": ["1"]})


def test_an_exception_names_plugin_and_sample_and_is_chained() -> None:
    def lengths(completions: list[str], answer: list[str]) -> list[float]:
        return [1 / len(completion) for completion in completions]

    with pytest.raises(RewardPluginError, match=r"'lengths' raised ZeroDivisionError.*sample 2: ''") as caught:
        call_reward(lengths, ["?"] * 3, ["a", "b", ""], {"answer": ["1"] * 3})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


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
