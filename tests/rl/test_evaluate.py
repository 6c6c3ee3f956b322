"""pass@k against counting every choice of k answers, and what an evaluation reports."""

from itertools import combinations

import numpy as np
import pytest

from deltarl.reward.batch import TrainerState
from deltarl.reward.rewards import ScoreReport
from deltarl.reward.verdict import Verdict, VerdictKind
from deltarl.rl.config import EvalConfig
from deltarl.rl.data import EncodedPrompt, Example
from deltarl.rl.evaluate import eval_metrics, evaluate, pass_at_k
from deltarl.rl.metrics import metric_doc
from deltarl.rl.warm_start import byte_tokenizer
from deltarl.rollout.outputs import CompletionOutput, RequestOutput


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(k):
    right = np.random.default_rng(0).random((20, 5)) < np.linspace(0, 1, 20)[:, None]
    counted = [np.mean([row[list(chosen)].any() for chosen in combinations(range(5), k)]) for row in right]
    assert pass_at_k(right, k) == pytest.approx(np.mean(counted))


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


def test_an_evaluation_asks_the_same_every_time_and_reports_what_came(tiny):
    prompts = [EncodedPrompt(i, Example(f"p{i}", "1", None, {}), f"p{i}", [5, 6]) for i in range(3)]
    sampler, config = Sampler(), EvalConfig(num_samples=4, num_problems=3, temperature=0.7)
    settings = {"max_tokens": 9, "stop_token_ids": (2,), "seed": 1, "tokenizer": byte_tokenizer()}
    settings["state"] = TrainerState(5, 9)
    episodes = evaluate(prompts, config, sampler=sampler, scorer=Judge(), **settings)
    asked = sampler.params
    assert {(p.n, p.temperature, p.max_tokens, p.stop_token_ids) for p in asked} == {(4, 0.7, 9, (2,))}
    assert len({p.seed for p in asked}) == 3
    evaluate(prompts, config, sampler=sampler, scorer=Judge(), **settings)
    assert sampler.params == asked
    metrics = eval_metrics(episodes)
    assert metrics == {
        "eval/len_mean": 2.5,
        "eval/truncated_frac": 0.5,
        "eval/no_answer_frac": 0.25,
        "eval/pass@1": 0.5,
        "eval/pass@4": 1.0,
    }
    for name in metrics:
        metric_doc(name)
