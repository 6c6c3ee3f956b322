"""Functions as one writes them for TRL, verl and OpenRLHF run as they are; async ones from anywhere."""

import asyncio
import json
import multiprocessing
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from deltarl.reward.batch import Batch, TrainerState
from deltarl.reward.call import Plugin
from deltarl.reward.log import RewardLog
from deltarl.reward.plugin import RewardPluginError
from deltarl.reward.signature import Signature

COMPLETIONS = [r"so \boxed{4}", r"thus \boxed{5}", ""]
COLUMNS: dict[str, list[Any]] = {"answer": ["4", "4", "4"], "completion_ids": [[1], [1, 2], []], "level": [1, 2, 3]}
BATCH = Batch(["2+2?"] * 3, COMPLETIONS, COLUMNS, None, TrainerState(5, 20))


def boxed(text: str) -> str:
    match = re.search(r"\\boxed\{(.*?)\}", text)
    return match[1] if match else ""


def score(fn: Callable[..., Any], batch: Batch = BATCH, **arguments: Any) -> tuple[list[float | None], RewardLog]:
    log = RewardLog(len(batch))
    return Plugin(fn, arguments=arguments).score(batch, log), log


# TRL


def trl_standard(prompts, completions, completion_ids, solution, trainer_state, log_extra, log_metric, **kwargs):
    log_extra("extracted", [boxed(c) for c in completions])
    log_metric("progress", trainer_state.global_step / trainer_state.max_steps)
    assert kwargs["level"] == [1, 2, 3]
    lengths = [len(ids) for ids in completion_ids]
    return [float(boxed(c) == s) + n / 10 for c, s, n in zip(completions, solution, lengths, strict=True)]


def test_trl() -> None:
    scores, log = score(trl_standard)
    assert scores == [1.1, 0.2, 0.0]
    assert log.metrics == {"progress": [0.25]}
    assert log.extras == {"extracted": ["4", "5", ""]}


def trl_everything_by_kwargs(completions, **kwargs):
    state, log_metric = kwargs["trainer_state"], kwargs.get("log_metric")
    if log_metric is not None:
        log_metric("step", state.global_step)
    return [1.0 if boxed(c) == s else None for c, s in zip(completions, kwargs["solution"], strict=True)]


def test_trl_with_what_it_wants_looked_up_in_kwargs() -> None:
    scores, log = score(trl_everything_by_kwargs)
    assert scores == [1.0, None, None]
    assert log.metrics == {"step": [5.0]}


def trl_conversational(completions, solution, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if boxed(content) == s else 0.0 for content, s in zip(contents, solution, strict=True)]


def text_of(completion):
    return completion[-1]["content"]


def trl_conversational_by_helper(prompts, completions, answer, **kwargs):
    asked = [text_of(prompt) for prompt in prompts]
    assert asked == ["2+2?"] * 3
    return [1.0 if boxed(text_of(c)) == a else 0.0 for c, a in zip(completions, answer, strict=True)]


def trl_conversational_by_annotation(completions: list[list[dict[str, str]]], **kwargs) -> list[float]:
    return [float(any("5" in text for message in c for text in message.values())) for c in completions]


def trl_either(completions, solution, **kwargs):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(boxed(text) == s) for text, s in zip(texts, solution, strict=True)]


def trl_conversational_by_get(completions, **kwargs):
    return [float("4" in completion[-1].get("content", "")) for completion in completions]


def text_that_may_hold_the_word(completions):
    return [float("content" not in completion.lower()) for completion in completions]


def text_with_json(completions: list[str]) -> list[float]:
    return [
        float(json.loads(completion)["content"]) if completion.startswith("{") else 0.0 for completion in completions
    ]


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (trl_conversational, [1, 0, 0]),
        (trl_conversational_by_helper, [1, 0, 0]),
        (trl_conversational_by_annotation, [0, 1, 0]),
        (trl_either, [1, 0, 0]),
        (partial(trl_conversational, unused=1), [1, 0, 0]),
        (trl_conversational_by_get, [1, 0, 0]),
        (text_that_may_hold_the_word, [1, 1, 1]),
        (text_with_json, [0, 0, 0]),
    ],
)
def test_trl_conversational(fn: Callable[..., Any], expected: list[float]) -> None:
    assert score(fn)[0] == expected


def test_trls_own_rewards() -> None:
    rewards = pytest.importorskip("trl.rewards")
    thinking = Batch(["?"] * 2, ["<think>a</think>b", "b"], {"completion_ids": [[1] * 10, [1] * 16]})
    assert Plugin(rewards.think_format_reward).score(thinking) == [1.0, 0.0]
    assert Plugin(rewards.get_soft_overlong_punishment(20, 10)).score(thinking) == pytest.approx([0.0, -0.6])


@pytest.mark.parametrize("column", ["solution", "answer", "ground_truth", "label", "gold"])
@pytest.mark.parametrize("wanted", ["solution", "answer", "ground_truth", "label", "gold"])
def test_the_gold_goes_by_any_of_its_names(column: str, wanted: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def fn(completions, {wanted}): return [float(x) for x in {wanted}]", scope)
    assert score(scope["fn"], Batch(["?"], ["!"], {column: ["7"]}))[0] == [7.0]


def test_a_column_of_the_asked_name_is_not_replaced_and_the_configured_gold_comes_first() -> None:
    columns: dict[str, list[Any]] = {"answer": ["1"], "solution": ["2"], "target": ["3"]}
    assert score(lambda completions, solution: [float(solution[0])], Batch(["?"], ["!"], columns))[0] == [2.0]
    batch = Batch(["?"], ["!"], columns, gold_column="target")
    assert score(lambda completions, gold: [float(gold[0])], batch)[0] == [3.0]


# verl


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    if data_source == "other":
        return 0.5
    right = boxed(solution_str) == ground_truth
    return {"score": 1.0 if right else -1.0, "acc": right, "pred": boxed(solution_str), "level": extra_info["level"]}


def test_verl() -> None:
    columns = {**COLUMNS, "data_source": ["math", "math", "other"]}
    scores, log = score(compute_score, Batch(["?"] * 3, COMPLETIONS, columns))
    assert scores == [1.0, -1.0, 0.5]
    assert log.extras == {"acc": [True, False, None], "pred": ["4", "5", None], "level": [1, 2, None]}
    assert log.metrics == {"acc": [0.5], "level": [1.5]}


def test_verl_extra_info_of_the_data_comes_as_it_is_and_reward_kwargs_are_args() -> None:
    def with_info(data_source, solution_str, ground_truth, extra_info=None, scale=1.0):
        return scale * extra_info["index"] + extra_info["level"]

    batch = Batch(["?"], ["!"], {"gold": ["1"], "extra_info": [{"index": 3}], "level": [2]})
    assert score(with_info, batch, scale=10.0)[0] == [32.0]


async def compute_score_async(data_source, solution_str, ground_truth, extra_info=None):
    await asyncio.sleep(0)
    return float(boxed(solution_str) == ground_truth)


def compute_score_batch(data_sources, solution_strs, ground_truths, extra_infos, bonus=0.0):
    assert len(data_sources) == 3
    assert [info["level"] for info in extra_infos] == [1, 2, 3]
    right = [boxed(s) == g for s, g in zip(solution_strs, ground_truths, strict=True)]
    return [{"score": float(r) + bonus, "acc": r} for r in right]


def test_verl_async_and_in_batches() -> None:
    assert score(compute_score_async)[0] == [1.0, 0.0, 0.0]
    scores, log = score(compute_score_batch, bonus=0.5)
    assert scores == [1.5, 0.5, 0.5]
    assert log.metrics == {"acc": [pytest.approx(1 / 3)]}


# OpenRLHF


def reward_func(queries, prompts, labels, **kwargs):
    assert len(queries) == len(prompts) == len(labels)
    right = [float(boxed(q[len(p) :]) == gold) for q, p, gold in zip(queries, prompts, labels, strict=True)]
    rewards = torch.tensor(right)
    chars = torch.tensor([len(query) for query in queries])
    return {"rewards": 2 * rewards, "scores": rewards, "extra_logs": {"chars": chars}}


def test_openrlhf() -> None:
    scores, log = score(reward_func)
    assert scores == [2.0, 0.0, 0.0]
    assert log.extras == {"scores": [1.0, 0.0, 0.0], "chars": [16, 18, 4]}
    assert log.metrics["chars"] == [pytest.approx(38 / 3)]


@pytest.mark.parametrize("wrap", [torch.tensor, list, lambda values: values[0], lambda values: torch.tensor(values[0])])
def test_openrlhf_that_returns_rewards_alone(wrap: Callable[..., Any]) -> None:
    def fn(queries, prompts, labels, /, **kwargs):
        return wrap([float("5" in queries[0])])

    assert score(fn)[0] == [0.0, 1.0, 0.0]


# What goes wrong


def fails_on_five(data_source, solution_str, ground_truth, extra_info=None):
    return 1 / (boxed(solution_str) != "5")


async def fails_on_five_async(completions):
    return [1 / (boxed(completion) != "5") for completion in completions]


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda completions: [json.loads(c)["content"] for c in completions], r"completions: list\[str\]"),
        (lambda completions, **kw: [c[0][kw["answer"][0]] for c in completions], r"completions: list\[list\[dict"),
        (fails_on_five, r"raised ZeroDivisionError.*on sample 1: 'thus"),
        (fails_on_five_async, r"raised ZeroDivisionError.*on sample 1: 'thus"),
        (
            lambda data_source, solution_str, ground_truth: {"reward": 1.0},
            "dict without 'score' for sample 0; it has 'r",
        ),
        (lambda data_source, solution_str, ground_truth: None if solution_str else "1", "returned a str for sample 2"),
        (
            lambda data_sources, solution_strs, ground_truths: [{"score": 1.0, "acc": 1}],
            "1 scores for 3 .*no score for sample 1",
        ),
        (lambda data_sources, solution_strs, ground_truths: 1.0, "returned a float; it must return a list of 3"),
        (lambda queries, prompts, labels: [1.0, 2.0], "returned 2 scores for 1 completion, sample 0"),
        (lambda queries, prompts, labels: {"reward": 1.0}, "dict without 'rewards' for sample 0; it has 'reward'"),
        (lambda data_source, solution_str, ground_truth, router: 1.0, "needs 'router'"),
    ],
)
def test_a_foreign_function_that_fails_is_told_where(fn: Callable[..., Any], message: str) -> None:
    with pytest.raises(RewardPluginError, match=message):
        score(fn)


def test_a_foreign_function_needs_a_gold() -> None:
    with pytest.raises(
        RewardPluginError, match=r"needs a reference answer, a column called answer.*the data has level"
    ):
        score(compute_score, Batch(["?"], ["!"], {"level": [1]}))


# Async


async def trl_async(prompts, completions, answer, log_metric, **kwargs):
    await asyncio.sleep(0)
    log_metric("thread", threading.get_ident())
    return [float(boxed(c) == a) for c, a in zip(completions, answer, strict=True)]


class AsyncReward:
    async def __call__(self, completions, answer):
        return [float(boxed(c) == a) for c, a in zip(completions, answer, strict=True)]


async def in_a_running_loop() -> list[float | None]:
    return score(trl_async)[0]


def in_a_thread() -> list[float | None]:
    results: list[list[float | None]] = []
    thread = threading.Thread(target=lambda: results.append(score(trl_async)[0]))
    thread.start()
    thread.join(10)
    return results[0]


def in_a_fork() -> list[float | None]:
    score(trl_async)  # the parent has a loop already, whose thread the fork does not have
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply_async(in_this_thread).get(10)


def in_this_thread() -> list[float | None]:
    return score(trl_async)[0]


@pytest.mark.parametrize(
    "run",
    [in_this_thread, in_a_thread, in_a_fork, lambda: asyncio.run(in_a_running_loop()), lambda: score(AsyncReward())[0]],
)
def test_async_functions_run_from_anywhere(run: Callable[[], list[float | None]]) -> None:
    assert run() == [1.0, 0.0, 0.0]


def test_async_calls_for_each_sample_run_together_in_one_lasting_loop() -> None:
    waiting: list[str] = []
    loops: set[int] = set()

    async def meets_the_others(data_source, solution_str, ground_truth, extra_info=None):
        loops.add(id(asyncio.get_running_loop()))
        waiting.append(solution_str)
        while len(waiting) % 3:
            await asyncio.sleep(0)
        return 1.0

    for _ in range(2):
        assert score(meets_the_others)[0] == [1.0] * 3
    assert len(loops) == 1


def test_signatures_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(RewardPluginError, match="no readable signature"):
        Plugin(min)
    assert not Signature(lambda completions: [0.0]).wants_messages
