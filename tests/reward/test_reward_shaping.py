"""Shaping rewards against values worked out by hand from their papers, and from a config by name."""

from typing import Any

import pytest

from deltarl.reward.batch import TrainerState
from deltarl.reward.plugin import RewardPluginError
from deltarl.reward.rewards import RewardSpec, Scorer
from deltarl.reward.shaping import format_tags, kimi_length, repetition, soft_overlong
from deltarl.reward.verdict import Verdict, VerdictKind
from deltarl.rl.cli import parse_config
from deltarl.rl.fleets import scorer_arguments

THINK = ["<think>", "</think>", r"\boxed{"]


@pytest.mark.parametrize(
    ("text", "tags", "expected"),
    [
        (r"\boxed{1}", [r"\boxed{"], 1.0),
        (r"\boxed{1} \boxed{1}", [r"\boxed{"], 0.0),
        ("1", [r"\boxed{"], 0.0),
        (r"<think>a</think>\boxed{1}", THINK, 1.0),
        (r"</think>a<think>\boxed{1}", THINK, 0.0),
        (r"<think>\boxed{1}</think>", THINK, 0.0),
        (r"<think><think>a</think>\boxed{1}", THINK, 0.0),
        (r"a</think>\boxed{1}", THINK, 0.0),
    ],
)
def test_format(text: str, tags: list[str], expected: float) -> None:
    assert format_tags([text], tags) == [expected]


def verdicts(marks: str) -> list[Verdict]:
    """+ right, - wrong, ? no readable gold."""
    scores = {"+": 1.0, "-": 0.0, "?": None}
    kinds = {"+": VerdictKind.RIGHT, "-": VerdictKind.WRONG, "?": VerdictKind.ERROR}
    return [Verdict(kinds[mark], scores[mark], None, 0.0) for mark in marks]


def test_kimi_length_compares_the_answers_to_one_prompt() -> None:
    prompts = ["a"] * 5 + ["b"] * 2 + ["c"] * 2
    lengths = [10, 20, 30, 10, 30, 7, 7, 1, 2]
    rewards = kimi_length(prompts, [[0] * n for n in lengths], verdicts("+++--+-?+"), TrainerState())
    assert rewards == [0.5, 0.0, -0.5, 0.0, -0.5, 0.0, 0.0, None, -0.5]


@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (5, 0.5), (10, 1.0), (25, 1.0)])
def test_kimi_length_warms_up(step: int, weight: float) -> None:
    rewards = kimi_length(["a"] * 2, [[0], [0] * 9], verdicts("+-"), TrainerState(step, 30), warmup_steps=10)
    assert rewards == [weight * 0.5, weight * -0.5]


@pytest.mark.parametrize(("length", "expected"), [(0, 0), (60, 0), (70, -0.25), (100, -1), (101, -1), (900, -1)])
def test_soft_overlong(length: int, expected: float) -> None:
    assert soft_overlong([[0] * length], max_tokens=100, cache=40) == [expected]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([], 0.0), ([1], 0.0), ([1, 2, 3, 4], 0.0), ([5] * 5, -1.5), ([1, 2, 1, 2], -2 * 1 / 3)],
)
def test_repetition(ids: list[int], expected: float) -> None:
    assert repetition([ids], ngram_size=2, max_penalty=-2.0) == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("soft_overlong", {"max_tokens": 10, "cache": 11}, "cache must be from 1 to max_tokens = 10, got 11"),
        ("soft_overlong", {"cache": 11}, "needs 'max_tokens'"),
        ("repetition", {"max_penalty": 1.0}, "max_penalty <= 0"),
        ("format_tags", {"tags": "</think>"}, "must be a list of texts"),
        ("kimi_length", {"warmup_steps": -1}, "warmup_steps must not be negative, got -1"),
        ("kimi_length", {"warmup": 3}, "no parameter 'warmup' to set; did you mean 'warmup_steps'"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(name: str, args: dict[str, Any], message: str) -> None:
    columns = {"answer": ["1"], "completion_ids": [[1]]}
    with pytest.raises(RewardPluginError, match=message):
        Scorer([RewardSpec("math"), RewardSpec("shape", name, args=args)]).score(["?"], ["!"], columns)


def test_all_of_them_by_name_from_a_config() -> None:
    config = parse_config(
        "",
        [
            *("--config", "configs/quickstart.yaml"),
            "reward.functions=[{name: right, function: math},"
            " {name: format, function: format_tags, weight: 0.5},"
            " {name: length, function: kimi_length, args: {warmup_steps: 4}},"
            " {name: overlong, function: soft_overlong, args: {max_tokens: 8, cache: 4}},"
            " {name: loops, function: repetition, args: {ngram_size: 1}}]",
        ],
    )
    scorer = Scorer(**scorer_arguments(config))
    columns = {"answer": ["4", "4"], "completion_ids": [[1, 2], [1, 2, 3, 4, 5, 5]]}
    report = scorer.score(["2+2?"] * 2, [r"\boxed{4}", r"\boxed{4}, so \boxed{4}"], columns, TrainerState(2, 9))
    assert report.components == {
        "right": [1.0, 1.0],
        "format": [1.0, 0.0],
        "length": [0.25, -0.25],
        "overlong": [0.0, -0.5],
        "loops": [0.0, pytest.approx(-1 / 6)],
    }
    assert report.scores == pytest.approx([1 + 0.5 + 0.25, 1 - 0.25 - 0.5 - 1 / 6])
