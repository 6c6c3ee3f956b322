"""pass@k against counting every choice of k answers, and what an evaluation reports."""

from itertools import combinations

import numpy as np
import pytest

from deltarl.reward.batch import TrainerState
from deltarl.reward.rewards import ScoreReport
from deltarl.reward.verdict import Verdict, VerdictKind
from deltarl.rl.data import EncodedPrompt, Example
from deltarl.rl.episodes import Episodes
from deltarl.rl.eval_stats import majority_right, pass_at_k, with_interval
from deltarl.rl.evaluate import eval_metrics, evaluate
from deltarl.rl.metrics import metric_doc
from deltarl.rl.warm_start import byte_tokenizer
from deltarl.rollout.outputs import CompletionOutput, RequestOutput


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(k):
    right = np.random.default_rng(0).random((20, 5)) < np.linspace(0, 1, 20)[:, None]
    counted = [np.mean([row[list(chosen)].any() for chosen in combinations(range(5), k)]) for row in right]
    np.testing.assert_allclose(pass_at_k(right, k), counted)


@pytest.mark.parametrize("k", [0, 6])
def test_pass_at_k_needs_that_many_answers(k):
    with pytest.raises(ValueError, match="between 1 and n = 5"):
        pass_at_k(np.zeros((2, 5), dtype=bool), k)


class Sampler:
    """Answers with its seed, so that a test sees what it was asked."""

    def __init__(self):
        self.params = []

    def generate(self, prompts, params):
        self.params = list(params)
        finish = ["stop", "length"]
        return [
            RequestOutput(
                "",
                list(p),
                [
                    CompletionOutput(i, [40 + i] * n, [0.0] * n, [0.0] * n, [0] * n, finish[i % 2])
                    for i, n in enumerate(range(1, q.n + 1))
                ],
            )
            for p, q in zip(prompts, params, strict=True)
        ]


class Judge:
    """First and last answer of each problem right, the second without an answer."""

    def score(self, prompts, completions, columns, state):
        assert state == TrainerState(5, 9)
        kinds = [VerdictKind.RIGHT, VerdictKind.NO_ANSWER, VerdictKind.WRONG, VerdictKind.RIGHT]
        verdicts = [Verdict(kinds[i % 4], float(i % 4 in (0, 3)), None, 0.0) for i in range(len(completions))]
        return ScoreReport([v.score for v in verdicts], verdicts, {})


def prompts(count: int, first: int = 0) -> list[EncodedPrompt]:
    return [EncodedPrompt(i, Example(f"p{i}", "1", None, {}), f"p{i}", [5, 6]) for i in range(first, first + count)]


@pytest.fixture
def asking(tiny):
    """`asking(sets)`: the episodes of each set, and the sampling parameters of every prompt."""
    config = tiny("eval.num_samples=4", "eval.num_problems=3", "eval.temperature=0.7", "rollout.max_tokens=9", "seed=1")

    def ask(sets):
        sampler, stages = Sampler(), {"tokenizer": byte_tokenizer(), "scorer": Judge(), "state": TrainerState(5, 9)}
        return evaluate(sets, config, sampler=sampler, **stages), sampler.params

    return ask


def test_an_evaluation_asks_the_same_every_time_and_reports_what_came(asking):
    episodes, asked = asking({"": prompts(3)})
    assert {(p.n, p.temperature, p.max_tokens, p.stop_token_ids) for p in asked} == {(4, 0.7, 9, (2,))}
    assert len({p.seed for p in asked}) == 3
    assert asking({"": prompts(3)})[1] == asked
    metrics = eval_metrics(episodes, timeout=1.0)
    assert metrics == {
        "eval/len_mean": 2.5,
        "eval/truncated_frac": 0.5,
        "eval/no_answer_frac": 0.25,
        **{f"eval/pass@1{end}": 0.5 for end in ("", "/low", "/high")},
        **{f"eval/pass@2{end}": pytest.approx(5 / 6) for end in ("", "/low", "/high")},
        **{f"eval/pass@4{end}": 1.0 for end in ("", "/low", "/high")},
        **{f"eval/maj@4{end}": 1.0 for end in ("", "/low", "/high")},
    }
    for name in metrics:
        metric_doc(name)


def test_sets_are_sampled_together_and_do_not_change_each_other(asking):
    alone, asked = asking({"": prompts(2)})
    both, asked_both = asking({"": prompts(2), "b": prompts(3, 10), "a": prompts(1, 20)})
    assert asked_both[:2] == asked
    assert len({p.seed for p in asked_both}) == 6
    assert asking({"": prompts(3), "a": prompts(1, 20)})[1][-1] == asked_both[-1]
    assert [[p.row for p in e.prompts] for e in both.values()] == [[0, 1], [10, 11, 12], [20]]
    assert both[""].completions == alone[""].completions
    metrics = eval_metrics(both, timeout=1.0)
    assert metrics["eval/b/pass@1"] == metrics["eval/a/pass@1"] == 0.5
    for name in metrics:
        metric_doc(name)


def equal(*pairs: str):
    """`same` that knows only these to be equal, e.g. "1/2=0.5", and counts what it is asked."""
    asked = []

    def same(a: str, b: str) -> bool:
        asked.append((a, b))
        return f"{a}={b}" in pairs or f"{b}={a}" in pairs

    return same, asked


@pytest.mark.parametrize(
    ("right", "others", "pairs", "expected"),
    [
        (3, ["4", "5"], [], 1.0),
        (1, ["4", "4", "5"], [], 0.0),
        (2, ["4", "4", "5"], [], 0.5),
        (1, ["4", "5", "6"], [], 0.25),
        (2, ["1/2", "0.5", "0.5"], ["1/2=0.5"], 0.0),
        (2, ["1/2", "0.5", "7"], ["1/2=0.5"], 0.5),
        (2, ["X + 1", "x+1", "x +1"], [], 0.0),
        (1, [None, None, None], [], 1.0),
        (0, ["4", "5"], [], 0.0),
        (0, [None], [], 0.0),
    ],
)
def test_majority(right, others, pairs, expected):
    flags = [True] * right + [False] * len(others)
    answers = ["right", *["also right"] * (right - 1)][:right] + others
    same, _ = equal(*pairs)
    order = np.random.default_rng(0).permutation(len(flags))
    for places in (range(len(flags)), order):
        found = majority_right([flags[i] for i in places], [answers[i] for i in places], same)
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("right", "others"), [(4, ["4", "5", "6"]), (1, ["4", "4", "5"]), (0, ["4", "5"]), (2, ["4", "4"])]
)
def test_answers_are_compared_only_where_it_could_change_the_outcome(right, others):
    same, asked = equal()
    majority_right([True] * right + [False] * len(others), ["r"] * right + others, same)
    assert asked == []


def test_the_verifier_joins_answers_written_differently():
    """Two right ones against three that are the same number in three notations."""
    texts = ["7", "7", "1/2", "0.5", "\\frac{1}{2}"]
    kinds = [VerdictKind.RIGHT] * 2 + [VerdictKind.WRONG] * 3
    verdicts = [Verdict(k, float(k is VerdictKind.RIGHT), t, 0.0) for k, t in zip(kinds, texts, strict=True)]
    outputs = [CompletionOutput(i, [40], [0.0], [0.0], [0], "stop") for i in range(5)]
    report = ScoreReport([v.score for v in verdicts], verdicts, {})
    episodes = Episodes(prompts(1), [RequestOutput("", [5], outputs)], texts, report)
    assert eval_metrics({"": episodes}, timeout=2.0)["eval/maj@5"] == 0
    assert eval_metrics({"": episodes}, timeout=2.0)["eval/pass@5"] == 1


def test_intervals_hold_the_mean_and_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        values = (rng.random(60) < 0.3).astype(float)
        found = with_interval({"x": values, "y": 1 - values})
        assert found["x/low"] <= found["x"] == values.mean() <= found["x/high"]
        assert found["y/low"] == pytest.approx(1 - found["x/high"])
        hits += found["x/low"] <= 0.3 <= found["x/high"]
    assert 88 <= hits <= 99  # 95 expected
    assert with_interval({"x": np.ones(5)}) == {"x": 1, "x/low": 1, "x/high": 1}
