"""Sampling ahead: in which order, how far, and what of it is kept."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest

from deltarl.reward.rewards import ScoreReport
from deltarl.reward.tree import Sym
from deltarl.reward.verdict import DecidedBy, Reason, Verdict, VerdictKind
from deltarl.rl.ahead import Ahead
from deltarl.rl.collected import Collected, load_batches, save_batches
from deltarl.rl.data import EncodedPrompt, Example
from deltarl.rl.episodes import Episodes
from deltarl.rl.in_order import InOrder
from deltarl.rl.timeline import Timeline, of_step
from deltarl.rl.trace import read_trace
from deltarl.rollout.outputs import CompletionOutput, RequestOutput, RoutedExperts

PROBLEMS = [EncodedPrompt(i, Example(f"problem {i}", str(i), None, {}), f"problem {i}", [i]) for i in range(4)]


def batch(version: int, seed: int = 0) -> Collected:
    """Two problems with two answers each, of numbers that are hard to write down."""
    rng = np.random.default_rng(seed)

    def answer(i: int) -> CompletionOutput:
        n = 1 + int(rng.integers(5))
        logprobs, other = rng.normal(size=(2, n)).tolist()
        experts = RoutedExperts(rng.integers(9, size=(3, 2, 2)), rng.integers(9, size=(n - 1, 2, 2))) if i else None
        return CompletionOutput(
            i,
            rng.integers(99, size=n).tolist(),
            logprobs,
            other,
            [version] * n,
            "stop",
            7,
            "é\n",
            routed_experts=experts,
        )

    groups = [RequestOutput(f"prompt-{p}", [p, 5], [answer(0), answer(1)]) for p in range(2)]
    verdict = Verdict(VerdictKind.WRONG, 0.0, "x", 0.1, "", DecidedBy.EXACT, None, None, Reason.DIFFERENT)
    verdicts = [verdict, replace(verdict, kind=VerdictKind.RIGHT, score=1.0), verdict, replace(verdict, score=None)]
    report = ScoreReport(
        [0.1, math.inf, 1 / 3, None],
        verdicts,
        {"math": [0.0, 1.0, None, 0.5]},
        {"m/x": [2.0]},
        {"m/y": [1, "a", None, 2]},
    )
    episodes = Episodes([PROBLEMS[3], PROBLEMS[1]], groups, ["a", "b", "\ud800c", "d"], report)
    return Collected(episodes, [0], [3, 1], {"group/kept_frac": 0.5}, {"rollout": 0.25})


def test_batches_come_back_from_their_files_to_the_last_digit_without_what_the_verifier_parsed(tmp_path):
    batches = [batch(3, seed=1), batch(4, seed=2)]
    parsed = [replace(v, pred=Sym("x"), gold=Sym("y")) for v in batches[0].episodes.report.verdicts]
    report = replace(batches[0].episodes.report, verdicts=parsed)
    save_batches([replace(batches[0], episodes=replace(batches[0].episodes, report=report)), batches[1]], tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["batches.json", "batches.safetensors"]
    assert [repr(b) for b in load_batches(tmp_path, PROBLEMS)] == [repr(b) for b in batches]


def test_a_file_that_cannot_be_written_is_an_error_of_the_disk(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        save_batches([batch(0)], tmp_path / "nowhere")


@pytest.mark.parametrize("threaded", [False, True])
def test_calls_are_done_in_order_and_none_after_one_that_failed(threaded):
    done: list[int] = []

    def call(i: int, *, fail: bool = False) -> int:
        if fail:
            raise KeyError(i)
        done.append(i)
        return 10 * i

    order = InOrder("sampling", threaded)
    futures = [order.do(call, i, fail=i == 3) for i in range(6)]
    assert [f.result() for f in futures[:3]] == [0, 10, 20]
    for future in futures[3:]:
        with pytest.raises(KeyError, match="3"):
            future.result()
    assert done == [0, 1, 2]
    order.close()


def test_closing_waits_for_the_call_under_way_alone():
    begun, go_on, done = threading.Event(), threading.Event(), []

    def call(i: int) -> None:
        begun.set()
        go_on.wait()
        done.append(i)

    order = InOrder("sampling", in_thread=True)
    for i in range(3):
        order.do(call, i)
    begun.wait()
    threading.Timer(0.05, go_on.set).start()
    order.close()
    assert done == [0]


@pytest.mark.parametrize("threaded", [False, True])
def test_what_is_done_later_is_for_the_step_in_which_it_was_asked_for(tmp_path, threaded):
    timeline, order = Timeline(tmp_path), InOrder("sampling", threaded)

    def call() -> None:
        with timeline.call("rollout", 0, "load_weights"):
            pass

    for step in (5, 6):
        with of_step(step):
            order.do(call)
    order.do(call).result()
    order.close()
    timeline.close()
    assert [span.step for span in read_trace(tmp_path / "trace.json")] == [5, 6, 0]


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_each_batch_meets_the_weights_it_should_and_none_is_sampled_further_ahead(max_staleness, threaded):
    version, learned, sampled, furthest = 0, 0, list[int](), 0

    def load(new: int) -> None:
        nonlocal version
        version = new

    def collect(step: int) -> Collected:
        nonlocal furthest
        sampled.append(step)
        furthest = max(furthest, step - learned)
        return batch(version)

    ahead = Ahead(collect, max_staleness, last_step=8, in_thread=threaded)
    for step in range(1, 9):
        taken = ahead.take(step)
        assert taken.episodes.groups[0].outputs[0].weight_versions[0] == max(0, step - 1 - max_staleness)
        assert set(taken.seconds) == {"rollout", "wait_learner"}
        learned = step
        ahead.do(load, step)
        if step % 3 == 0:
            assert ahead.do(lambda: version).result() == step, "an evaluation meets the newest weights"
    ahead.close()
    assert sampled == list(range(1, 9))
    assert furthest <= 1 + max_staleness


def test_the_samplers_work_while_the_learner_does():
    sampled = threading.Event()

    def collect(step: int) -> Collected:
        if step == 2:
            sampled.set()
        return batch(0)

    ahead = Ahead(collect, 1, last_step=9, in_thread=True)
    ahead.take(1)
    assert sampled.wait(10)
    ahead.close()


def test_tokens_that_are_older_than_they_may_be_are_refused():
    ahead = Ahead(lambda step: batch(0), 1, last_step=9, in_thread=False)
    ahead.take(1), ahead.take(2)
    with pytest.raises(RuntimeError, match=r"step 3 would learn from tokens of weights version 0.*max_staleness = 1"):
        ahead.take(3)


@pytest.mark.parametrize("place", [0, -1])
def test_one_such_token_is_enough_whichever_it_is(place):
    fine = batch(2, seed=1)
    answer = fine.episodes.groups[1].outputs[0]
    assert len(answer.weight_versions) > 1
    ahead = Ahead(lambda step: fine, 1, last_step=9, in_thread=False)
    ahead.take(1), ahead.take(2), ahead.take(3)
    answer.weight_versions[place] = 1
    with pytest.raises(RuntimeError, match="step 4 would learn from tokens of weights version 1"):
        ahead.take(4)


def test_what_is_kept_ends_where_sampling_failed_and_the_rest_is_sampled_anew(tmp_path):
    def collect(step: int) -> Collected:
        if step == 4:
            raise KeyError("no such thing")
        return batch(0, seed=step)

    broken = Ahead(collect, 3, last_step=9, in_thread=False)
    broken.take(1)
    broken.take(2)
    broken.save(tmp_path)
    sampled: list[int] = []

    def again(step: int) -> Collected:
        sampled.append(step)
        return batch(2, seed=step)

    resumed = Ahead(again, 3, last_step=9, in_thread=False)
    resumed.load(tmp_path, 2, PROBLEMS)
    third, fourth = resumed.take(3), resumed.take(4)
    assert repr(third.episodes) == repr(batch(0, seed=3).episodes)
    assert repr(fourth.episodes) == repr(batch(2, seed=4).episodes)
    assert sampled == [4, 5, 6, 7]


def test_nothing_ahead_leaves_no_files(tmp_path):
    ahead = Ahead(lambda step: batch(step - 1), 0, last_step=9, in_thread=False)
    ahead.take(1)
    ahead.save(tmp_path)
    assert not list(tmp_path.iterdir())
    ahead.load(tmp_path, 1, PROBLEMS)
    ahead.take(2)
