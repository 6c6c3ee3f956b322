"""Prompts and answers that kill workers: a run goes on without them, counts them, and does not try them again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deltarl.actor.fleet import KILLER
from deltarl.actor.host import StateLostError
from deltarl.actor.placement import PlacementError
from deltarl.reward.batch import TrainerState
from deltarl.reward.rewards import ScoreReport
from deltarl.reward.verdict import Reason, Verdict, VerdictKind
from deltarl.rl import collect, loop
from deltarl.rl.config import RunConfig
from deltarl.rl.faults import FAULTS_FILE, Faults
from deltarl.rl.in_process import InProcess
from deltarl.rl.metrics import read_curve, read_jsonl
from deltarl.rl.recovery import keep_running
from deltarl.rl.stages import FleetScorer, merge_reports
from deltarl.rl.train import train


class Deadly:
    """A fleet whose workers are killed by the completion "13"."""

    def __init__(self):
        self.asked: list[list[str]] = []

    def __len__(self):
        return 2

    def attempt(self, method, items, max_deaths):
        return [self._score(*item) for item in items]

    def _score(self, prompts, completions, columns, state):
        self.asked.append(list(completions))
        if "13" in completions:
            return KILLER
        assert columns["answer"] == prompts
        scores = [float(c) for c in completions]
        verdicts = [Verdict(VerdictKind.WRONG, s, c, 0.0) for s, c in zip(scores, completions, strict=True)]
        return ScoreReport(scores, verdicts, {"math": scores}, {"m/n": scores}, {"m/x": list(completions)})


def test_an_answer_that_kills_reward_workers_has_no_score_and_is_not_scored_again(tmp_path):
    fleet, faults = Deadly(), Faults(tmp_path)
    prompts, completions = list("aabbcc"), ["1", "2", "3", "13", "5", "6"]
    for again in (False, True):
        if again:
            fleet.asked.clear()
            faults = Faults(tmp_path)
        scorer = FleetScorer(fleet, faults)
        report = scorer.score(prompts, completions, {"answer": prompts}, TrainerState(0, 1))
        assert report.scores == report.components["math"] == [1.0, 2.0, 3.0, None, 5.0, 6.0]
        assert report.extras == {"m/x": ["1", "2", "3", None, "5", "6"]}
        assert [v.kind for v in report.verdicts].count(VerdictKind.ERROR) == 1
        assert report.verdicts[3].reason is Reason.CRASH
        assert report.metrics == {"m/n": [1.0, 2.0, 3.0, 5.0, 6.0]}
        assert faults.metrics()["worker/answers_set_aside"] == 1
    assert fleet.asked == [["1", "2"], ["3", "5", "6"]]


def poison_a_prompt(monkeypatch: pytest.MonkeyPatch, of_step: int) -> list[list[int]]:
    """The first prompt of that step kills whoever samples it; returns the list of those that were tried to death."""
    real, deaths, poison = InProcess.attempt, [], []
    collect = loop.Collector.collect

    def chosen(self, step):
        if step == of_step and not poison:
            config = self._config
            first = self._draw.batch(step - 1, config.seed)[0]
            poison.extend(self._problems[first].token_ids)
        return collect(self, step)

    def attempt(self, method, items, max_deaths):
        if method != "generate" or not poison:
            return real(self, method, items, max_deaths)
        found = []
        for prompts, params in items:
            if poison in [list(p) for p in prompts]:
                deaths.append(len(prompts))
                found.append(KILLER)
            else:
                found += real(self, method, [(prompts, params)], max_deaths)
        return found

    monkeypatch.setattr(loop.Collector, "collect", chosen)
    monkeypatch.setattr(InProcess, "attempt", attempt)
    return deaths


def test_a_run_goes_on_without_a_prompt_that_kills_and_a_resumed_one_does_not_try_it_again(
    tiny: Callable[..., RunConfig], monkeypatch, caplog
):
    deaths = poison_a_prompt(monkeypatch, of_step=2)
    # Four epochs: each problem comes again, and the one at fault is in the evaluation's way nowhere.
    options = ["in_process=true", "data.train.num_problems=12", "steps=8", "rollout.num_workers=2"]
    straight = tiny("name=straight", *options)
    train(straight)
    rows = read_jsonl(straight.run_dir / "metrics.jsonl")
    assert [row["worker/prompts_set_aside"] for row in rows] == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    (fault,) = read_jsonl(straight.run_dir / FAULTS_FILE)
    assert fault["kind"] == "prompt"
    assert repr(fault["text"]) in caplog.text
    assert deaths == [2, 1]
    assert all(row["optim/grad_norm"] is not None for row in rows[1:])

    broken = tiny("name=broken", *options)
    log = loop.Loop._log

    def dies(self, step, row, bar=None):
        if step == 5:
            raise StateLostError("rank 0 died")
        return log(self, step, row, bar)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_log", dies)
        with pytest.raises(StateLostError):
            train(broken)
    faults = read_jsonl(broken.run_dir / FAULTS_FILE)
    assert [row["kind"] for row in faults] == ["prompt", "learner", "learner", "learner"]
    train(broken)
    assert read_curve(broken.run_dir) == read_curve(straight.run_dir)
    assert deaths == [2, 1, 1, 1]  # in the straight run as one of two; in the other when it was looked at first, alone
    assert read_jsonl(broken.run_dir / "metrics.jsonl")[-1]["worker/learner_restarts"] == 3


def test_a_run_whose_learner_dies_goes_on_by_itself_as_long_as_it_gets_anywhere(
    tiny: Callable[..., RunConfig], monkeypatch
):
    straight, broken = tiny("in_process=true", "name=straight"), tiny("in_process=true", "learner.max_restarts=1")
    train(straight)
    log, lost = loop.Loop._log, []

    def dies(self, step, row, bar=None):
        if step in (3, 5) and step not in lost:
            lost.append(step)
            raise StateLostError("rank 0 died")
        return log(self, step, row, bar)

    monkeypatch.setattr(loop.Loop, "_log", dies)
    train(broken)
    assert lost == [3, 5]
    assert read_curve(broken.run_dir) == read_curve(straight.run_dir)
    assert read_jsonl(broken.run_dir / "metrics.jsonl")[-1]["worker/learner_restarts"] == 2


def test_where_no_answer_survives_there_is_no_score_and_others_can_be_joined(tmp_path):
    scorer = FleetScorer(Deadly(), Faults(tmp_path))
    nothing = scorer.score(["a"], ["13"], {"answer": ["a"]}, TrainerState(0, 1))
    assert nothing.scores == [None]
    some = scorer.score(["b"], ["2"], {"answer": ["b"]}, TrainerState(0, 1))
    joined = merge_reports([nothing, some])
    assert joined.scores == joined.components["math"] == [None, 2.0]
    assert joined.verdicts is not None
    assert [v.reason for v in joined.verdicts] == [Reason.CRASH, some.verdicts[0].reason]


def test_a_line_that_a_full_disk_cut_short_is_not_in_the_middle_of_the_file_afterwards(tmp_path):
    Faults(tmp_path).prompt([1, 2], "first")
    with (tmp_path / FAULTS_FILE).open("a") as file:
        file.write('{"kind": "prompt", "te')
    Faults(tmp_path).prompt([3], "second")
    assert Faults(tmp_path).has_prompt([1, 2])
    assert Faults(tmp_path).has_prompt([3])
    assert [row["text"] for row in read_jsonl(tmp_path / FAULTS_FILE)] == ["first", "second"]


def test_a_learner_lost_with_its_node_waits_for_another_node(tmp_path, monkeypatch):
    monkeypatch.setattr("deltarl.rl.recovery.RETRY_S", 0.0)
    fates = iter([StateLostError("its node is gone"), PlacementError("too small"), PlacementError("too small"), None])

    def attempt() -> None:
        if (error := next(fates)) is not None:
            raise error

    keep_running(attempt, lambda: None, Faults(tmp_path), max_restarts=1)
    assert next(fates, "none left") == "none left"

    def too_small() -> None:
        raise PlacementError("too small")

    with pytest.raises(PlacementError):  # from the beginning
        keep_running(too_small, lambda: None, Faults(tmp_path), max_restarts=1)


def test_losses_in_a_row_are_those_without_a_new_checkpoint(tmp_path):
    made = iter([None, "checkpoint-10", "checkpoint-20", "checkpoint-20", "checkpoint-20"])
    lost = []

    def attempt() -> None:
        lost.append(1)
        raise StateLostError("killed")

    with pytest.raises(StateLostError):
        keep_running(attempt, lambda: (name := next(made)) and Path(name), Faults(tmp_path), max_restarts=2)
    assert len(lost) == 4


def test_a_refill_of_nothing_but_prompts_that_kill_is_left_out(tiny, monkeypatch):
    real, real_round, refills = collect.sample, loop.Collector._round, []

    def now(self, step, refill, count, drawn):
        refills.append(refill)
        return real_round(self, step, refill, count, drawn)

    def sampled(prompts, params, sampler):
        return [None] * len(prompts) if refills and refills[-1] == 1 else real(prompts, params, sampler)

    monkeypatch.setattr(loop.Collector, "_round", now)
    monkeypatch.setattr(collect, "sample", sampled)
    options = ["algorithm=dapo", "rollout.max_refills=2", "steps=2", "in_process=true", "reward.overlong_fraction=0"]
    config = tiny(*options)
    train(config)
    assert {0, 1, 2} <= set(refills)  # the second refill came after the first had none
    rows = read_jsonl(config.run_dir / "metrics.jsonl")[1:]
    assert [row["step"] for row in rows] == [1, 2]
    assert max(row["group/refills"] for row in rows) == 2

    monkeypatch.setattr(collect, "sample", lambda prompts, params, sampler: [None] * len(prompts))
    with pytest.raises(ValueError, match=r"all prompts of step 1 were set aside as they kill workers"):
        train(tiny("name=none", "steps=2", "in_process=true"))
