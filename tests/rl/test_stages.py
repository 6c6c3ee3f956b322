"""Work dealt out to a fleet comes back in the order it was given, whatever the number of workers."""

import pytest

from deltarl.reward.batch import TrainerState
from deltarl.reward.rewards import ScoreReport
from deltarl.reward.verdict import Verdict, VerdictKind
from deltarl.rl.faults import Faults
from deltarl.rl.stages import FleetSampler, FleetScorer, merge_reports
from deltarl.rollout.outputs import CompletionOutput, RequestOutput
from deltarl.rollout.params import SamplingParams


class FakeFleet:
    """`Fleet.attempt` in this process; keeps what each item held."""

    def __init__(self, worker, size):
        self.worker, self.size, self.items = worker, size, []

    def __len__(self):
        return self.size

    def attempt(self, method, items, max_deaths):
        self.items = list(items)
        return [getattr(self.worker, method)(*item) for item in items]


class Worker:
    def generate(self, prompts, params):
        return [
            RequestOutput(
                "",
                list(p),
                [CompletionOutput(i, [p[0], i], [0.0, 0.0], [0.0, 0.0], [0, 0], "stop") for i in range(q.n)],
            )
            for p, q in zip(prompts, params, strict=True)
        ]

    def score(self, prompts, completions, columns, state):
        assert state == TrainerState(3, 9)
        scores = [float(c) for c in completions]
        assert [float(p) for p in prompts] == scores
        assert [float(a) for a in columns["answer"]] == scores
        verdicts = [Verdict(VerdictKind.WRONG, s, c, 0.0) for s, c in zip(scores, completions, strict=True)]
        return ScoreReport(scores, verdicts, {"math": scores, "half": [s / 2 for s in scores]})


@pytest.mark.parametrize("workers", [1, 2, 3, 10])
def test_the_sampler_keeps_the_order_and_each_prompts_own_parameters(workers):
    fleet = FakeFleet(Worker(), workers)
    prompts = [[i, i + 1] for i in range(7)]
    groups = FleetSampler(fleet, Faults()).generate(prompts, [SamplingParams(n=1 + i % 3) for i in range(7)])
    assert [group.prompt_token_ids for group in groups] == prompts
    assert [len(group.outputs) for group in groups] == [1 + i % 3 for i in range(7)]
    assert len(fleet.items) == min(workers, 7)
    shares = [len(prompts) for prompts, _ in fleet.items]
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("workers", [1, 2, 3, 10])
def test_the_scorer_keeps_the_order_and_deals_columns_with_their_completions(workers):
    fleet = FakeFleet(Worker(), workers)
    texts = [str(i) for i in range(7)]
    report = FleetScorer(fleet, Faults()).score(texts, texts, {"answer": texts}, TrainerState(3, 9))
    assert report.scores == report.components["math"] == [float(i) for i in range(7)]
    assert report.components["half"] == [i / 2 for i in range(7)]
    assert [v.extracted for v in report.verdicts] == texts
    assert len(fleet.items) == min(workers, 7)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 10])
def test_the_answers_to_one_prompt_go_to_one_scorer(workers):
    fleet = FakeFleet(Worker(), workers)
    texts = ["0"] * 4 + ["1"] * 4 + ["2"] * 4
    report = FleetScorer(fleet, Faults()).score(texts, texts, {"answer": texts}, TrainerState(3, 9))
    assert report.scores == [float(text) for text in texts]
    assert len(fleet.items) == min(workers, 3)
    for prompts, *_ in fleet.items:
        assert all(prompts.count(prompt) == 4 for prompt in prompts)


def test_what_plug_ins_logged_is_merged_also_where_one_worker_logged_nothing():
    parts = [
        ScoreReport([1.0], None, {}, {"p/m": [1.0]}, {"p/x": ["a"]}),
        ScoreReport([1.0, 2.0], None, {}, {"p/m": [3.0], "p/n": [0.0]}, {"p/y": [1, 2]}),
    ]
    merged = merge_reports(parts)
    assert merged.metrics == {"p/m": [1.0, 3.0], "p/n": [0.0]}
    assert merged.extras == {"p/x": ["a", None, None], "p/y": [None, 1, 2]}


def test_reports_without_verdicts_merge_to_one_without():
    parts = [ScoreReport([1.0, None], None, {"a": [1.0, None]}), ScoreReport([0.5], None, {"a": [0.5]})]
    assert merge_reports(parts) == ScoreReport([1.0, None, 0.5], None, {"a": [1.0, None, 0.5]})
