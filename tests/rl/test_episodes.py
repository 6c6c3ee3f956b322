"""From trajectories and verdicts to advantages' input, metrics and sample rows, on hand-made answers."""

import math
from dataclasses import replace

import numpy as np
import pytest

from deltarl.model.tokenizer import byte_tokenizer
from deltarl.reward.batch import TrainerState
from deltarl.reward.rewards import ScoreReport
from deltarl.reward.verdict import Verdict, VerdictKind
from deltarl.rl.data import EncodedPrompt, Example
from deltarl.rl.episode_stats import sample_rows, staleness_metrics, train_metrics
from deltarl.rl.episodes import Episodes, score
from deltarl.rl.metrics import SampleRow, metric_doc
from deltarl.rollout.outputs import CompletionOutput, RequestOutput

K = VerdictKind
TOKENIZER = byte_tokenizer(["\\boxed{"])


def answer(text: str, finish: str = "stop") -> CompletionOutput:
    ids = TOKENIZER.encode(text)
    return CompletionOutput(0, ids, [-0.25] * len(ids), [-0.25] * len(ids), [4] * len(ids), finish)


def group(*outputs: CompletionOutput) -> RequestOutput:
    return RequestOutput("", [7, 8], list(outputs))


def prompt(i: int) -> EncodedPrompt:
    return EncodedPrompt(
        i, Example(f"problem {i}", f"gold {i}", None, {"level": i, "family": "f"}), f"text {i}", [7, 8]
    )


def verdict(kind: VerdictKind, score: float | None, seconds: float) -> Verdict:
    return Verdict(kind, score, f"ex {kind}", seconds)


@pytest.fixture
def episodes() -> Episodes:
    """Three problems with two answers each: all right; one right; none right and one without a score."""
    texts = [["a", "bb"], ["ccc", "dddd"], ["eeeee", "ffffff"]]
    finish = [["stop", "stop"], ["stop", "length"], ["length", "stop"]]
    kinds = [K.RIGHT, K.RIGHT, K.WRONG, K.RIGHT, K.NO_ANSWER, K.ERROR]
    scores = [1.0, 1.0, 0.0, 1.0, 0.0, None]
    verdicts = [verdict(k, s, 0.1 * i) for i, (k, s) in enumerate(zip(kinds, scores, strict=True))]
    bonus = [0.5, None, 0.1, 0.3, None, None]
    total = [1.5, 1.0, 0.1, 1.3, 0.0, None]
    return Episodes(
        prompts=[prompt(i) for i in range(3)],
        groups=[group(*map(answer, *pair)) for pair in zip(texts, finish, strict=True)],
        completions=[t for group in texts for t in group],
        report=ScoreReport(total, verdicts, {"math": scores, "bonus": bonus}),
    )


def test_shapes_keep_each_answer_with_its_problem(episodes):
    np.testing.assert_array_equal(episodes.scores, [[1.5, 1.0], [0.1, 1.3], [0.0, math.nan]])
    np.testing.assert_array_equal(episodes.right, [[True, True], [False, True], [False, False]])
    np.testing.assert_array_equal(episodes.lengths, [[1, 2], [3, 4], [5, 6]])
    samples = episodes.train_samples(np.arange(6.0).reshape(3, 2))
    assert [s.advantages[0] for s in samples] == [0, 1, 2, 3, 4], "the last answer has no score"
    assert [TOKENIZER.decode(s.completion_ids) for s in samples] == episodes.completions[:5]
    assert samples[3].logprobs == [-0.25] * 4
    assert samples[3].prompt_ids == [7, 8]


def test_train_metrics(episodes):
    metrics = train_metrics(episodes)
    scores = np.array([1.5, 1.0, 0.1, 1.3, 0.0])
    expected = {
        "reward/mean": scores.mean(),
        "reward/std": scores.std(),
        "acc/train": 0.5,
        "group/frac_all_right": 1 / 3,
        "group/frac_all_wrong": 1 / 3,
        "group/frac_mixed": 1 / 3,
        "len/mean": 3.5,
        "len/p95": 5.75,
        "len/max": 6,
        "len/right": (1 + 2 + 4) / 3,
        "len/wrong": (3 + 5 + 6) / 3,
        "len/truncated_frac": 1 / 3,
        "tokens/completion": 21,
        "reward/math/mean": 0.6,
        "reward/bonus/mean": 0.3,
        "verdict/right_frac": 0.5,
        "verdict/wrong_frac": 1 / 6,
        "verdict/no_answer_frac": 1 / 6,
        "verdict/unparsable_frac": 0.0,
        "verdict/timeout_frac": 0.0,
        "verdict/error_frac": 1 / 6,
        "verdict/seconds_p95": 0.475,
    }
    assert metrics == pytest.approx(expected)
    for name in metrics:
        metric_doc(name)


def test_staleness_is_of_tokens_and_answers_of_several_versions_are_counted(episodes):
    fresh = {"staleness/mean": 0, "staleness/max": 0, "staleness/mixed_frac": 0, "staleness/frac/0": 1}
    assert staleness_metrics(episodes, 4) == fresh
    first = episodes.groups[1].outputs[1]
    mixed = replace(first, weight_versions=[2, 3, 3, 4])  # of 21 tokens in all
    groups = [episodes.groups[0], group(answer("ccc"), mixed), episodes.groups[2]]
    found = staleness_metrics(replace(episodes, groups=groups), 4)
    assert found == {
        "staleness/mean": pytest.approx(4 / 21),
        "staleness/max": 2,
        "staleness/mixed_frac": pytest.approx(1 / 6),
        "staleness/frac/0": pytest.approx(18 / 21),
        "staleness/frac/1": pytest.approx(2 / 21),
        "staleness/frac/2": pytest.approx(1 / 21),
    }
    for name in found:
        metric_doc(name)


def test_a_mean_over_nothing_is_nan_and_without_a_verifier_a_positive_score_is_right(episodes):
    report = ScoreReport([None] * 6, None, {"bonus": [None] * 6})
    metrics = train_metrics(Episodes(episodes.prompts, episodes.groups, episodes.completions, report))
    for name in ("reward/mean", "reward/std", "reward/bonus/mean", "len/right"):
        assert math.isnan(metrics[name])
    assert metrics["acc/train"] == 0
    assert not any(name.startswith("verdict/") for name in metrics)
    report = ScoreReport([0.5, 0.0, -1.0, None, 2.0, 0.0], None, {"bonus": []})
    positive = Episodes(episodes.prompts, episodes.groups, episodes.completions, report)
    np.testing.assert_array_equal(positive.right, [[True, False], [False, False], [True, False]])


def test_score_hands_every_answer_over_with_the_columns_of_its_problem():
    seen = {}

    class Stage:
        def score(self, prompts, completions, columns, state):
            seen.update(prompts=prompts, completions=completions, columns=columns, state=state)
            return ScoreReport([0.0] * 4, None, {})

    eos = TOKENIZER.eos_token_id
    ended = CompletionOutput(0, [*TOKENIZER.encode("\\boxed{é}"), eos], [0.0] * 5, [0.0] * 5, [0] * 5, "stop")
    groups = [group(ended, answer("b")), group(answer("c"), answer("d"))]
    episodes = score([prompt(0), prompt(1)], groups, TOKENIZER, Stage(), TrainerState(2, 9))
    assert seen["state"] == TrainerState(2, 9)
    assert seen["prompts"] == ["text 0", "text 0", "text 1", "text 1"]
    assert seen["completions"] == episodes.completions == ["\\boxed{é}", "b", "c", "d"]
    assert seen["columns"] == {
        "level": [0, 0, 1, 1],
        "family": ["f"] * 4,
        "answer": ["gold 0", "gold 0", "gold 1", "gold 1"],
        "completion_ids": [t.token_ids for g in groups for t in g.outputs],
    }


def test_what_a_plug_in_logs_is_among_the_metrics_and_beside_its_sample(episodes):
    report = replace(episodes.report, metrics={"bonus/depth": [1.0, 4.0]}, extras={"bonus/why": list("abcdef")})
    logged = replace(episodes, report=report)
    metrics = train_metrics(logged)
    assert metrics["reward/bonus/log/depth"] == 2.5
    metric_doc("reward/bonus/log/depth")
    assert [row["extra"] for row in sample_rows(logged, 9, "train", 3)] == [{"bonus/why": x} for x in "acf"]


def test_sample_rows_are_spread_over_the_answers_and_say_what_became_of_them(episodes):
    rows = sample_rows(episodes, 9, "train", 3)
    assert [(row["group"], row["completion"]) for row in rows] == [(0, "a"), (1, "ccc"), (2, "ffffff")]
    assert rows[1] == SampleRow(
        step=9,
        split="train",
        prompt="text 1",
        completion="ccc",
        gold="gold 1",
        score=0.1,
        kind="wrong",
        extracted="ex wrong",
        seconds=0.2,
        finish_reason="stop",
        weight_version=4,
        group=1,
        tokens=3,
    )
    assert math.isnan(rows[2]["score"])
    assert len(sample_rows(episodes, 9, "eval", 100)) == 6
    assert sample_rows(episodes, 9, "eval", 0) == []


def test_a_group_is_informative_if_its_answers_score_differently(episodes):
    assert episodes.informative.tolist() == [True, True, False]  # one score, and one unknown, tell nothing apart
    report = replace(episodes.report, scores=[1.0, 1.0, None, None, 0.0, 0.5])
    assert replace(episodes, report=report).informative.tolist() == [False, False, True]


def test_samples_of_some_prompts(episodes):
    whole = episodes.train_samples(np.arange(6.0).reshape(3, 2))
    some = episodes.train_samples(np.array([[4.0, 5.0], [0.0, 1.0]]), [2, 0])
    assert some == [*whole[4:], *whole[:2]]


def test_rounds_of_sampling_become_one(episodes):
    assert Episodes.joined([episodes]) is episodes
    twice = Episodes.joined([episodes, episodes])
    np.testing.assert_array_equal(twice.scores, np.concatenate([episodes.scores] * 2))
    np.testing.assert_array_equal(twice.right, np.concatenate([episodes.right] * 2))
    assert twice.completions == episodes.completions * 2
    assert len(twice.prompts) == len(twice.groups) == 6
