"""A run's problems are checked before anything starts."""

import json
import logging

import numpy as np
import pytest

from deltarl.rl.config import ModelConfig, SFTConfig
from deltarl.rl.data import EncodedPrompt, Example
from deltarl.rl.problem_set import DataError, ProblemSet, demonstrations
from deltarl.rl.warm_start import load_tokenizer

GOOD = [{"problem": f"{i}+1", "answer": str(i + 1), "solution": f"so \\boxed{{{i + 1}}}"} for i in range(8)]


@pytest.fixture
def load(tiny, tmp_path):
    """`load(train_rows, overrides)` reads both splits from files; the test split is GOOD."""

    def run(train, *overrides):
        for name, rows in (("train", train), ("test", GOOD)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths = [f"data.{n}.path={tmp_path / n}.jsonl" for n in ("train", "test")]
        clear = ["data.train.problems=null", "data.test.problems=null"]
        config = tiny(*clear, *paths, *overrides)
        return ProblemSet.load(config, load_tokenizer(config.model))

    return run


def test_both_splits_are_encoded_and_the_test_split_is_cut_to_what_is_used(load):
    problems = load(GOOD, "eval.num_problems=5")
    assert [p.example.answer for p in problems.train] == [str(i + 1) for i in range(8)]
    assert [p.row for p in problems.test] == [0, 1, 2, 3, 4]
    assert "3+1" in problems.train[3].text


def test_generated_splits_have_nothing_in_common(tiny):
    config = tiny()
    problems = ProblemSet.load(config, load_tokenizer(config.model))
    assert (len(problems.train), len(problems.test)) == (48, 6)
    assert not {p.text for p in problems.train} & {p.text for p in problems.test}


def test_further_test_sets_are_loaded_by_name_and_cut_to_what_is_used(load, tmp_path):
    path = tmp_path / "test.jsonl"
    problems = load(
        GOOD, "eval.num_problems=5", f"data.more_tests={{hard: {{path: {path}}}, few: {{path: {path}, limit: 2}}}}"
    )
    assert {name: len(found) for name, found in problems.tests.items()} == {"": 5, "hard": 5, "few": 2}


def test_further_sources_of_training_problems_are_appended_with_their_source(load, tmp_path):
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOOD[:3]))
    problems = load(GOOD, f"data.more_train={{b: {{path: {tmp_path / 'more.jsonl'}, weight: 2}}}}")
    assert problems.train_sources == [0] * 8 + [1] * 3
    assert [p.text for p in problems.train[8:]] == [p.text for p in problems.train[:3]]


def test_a_filter_that_leaves_nothing_is_refused(load, tiny):
    problems = load(GOOD)
    config = tiny("data.sampling.measure_samples=2", "data.sampling.min_success=0.5")
    with pytest.raises(DataError, match="leave none of the problems of training source 1"):
        problems.draw(config, np.zeros(8))


def test_a_further_test_set_that_cannot_be_used_is_named(load, tmp_path):
    (tmp_path / "long.jsonl").write_text(json.dumps({"problem": "1" * 99, "answer": "1"}))
    with pytest.raises(DataError, match=r"data\.more_tests\.long: row 0: the prompt has"):
        load(GOOD, f"data.more_tests={{long: {{path: {tmp_path / 'long.jsonl'}}}}}")


def test_answers_the_verifier_cannot_read_are_reported_with_the_first_of_them(load, caplog):
    bad = [GOOD[0], {"problem": "odd", "answer": "\\frac{1}{"}, *GOOD[1:]]
    with caplog.at_level(logging.WARNING):
        assert len(load(bad).train) == 9
    (message,) = [r.getMessage() for r in caplog.records if "cannot read" in r.getMessage()]
    assert "1 of 15 answers" in message
    assert "'\\\\frac{1}{' (row 1)" in message


def test_readable_answers_are_no_news(load, caplog):
    with caplog.at_level(logging.WARNING):
        load(GOOD)
    assert "cannot read" not in caplog.text


def test_no_readable_answer_at_all_is_refused(load, monkeypatch):
    bad = [row | {"answer": "\\frac{1}{"} for row in GOOD]
    monkeypatch.setitem(globals(), "GOOD", bad)
    with pytest.raises(DataError, match=r"cannot read 14 of 14 answers.*answer_column"):
        load(bad)


def test_without_the_verifier_answers_may_be_anything(tiny, load, tmp_path):
    recipe = tiny()
    only_format = recipe.reward.model_copy(update={"functions": recipe.reward.functions[1:]})
    config = recipe.model_copy(update={"reward": only_format})
    bad = tmp_path / "bad.jsonl"
    bad.write_text("".join(json.dumps(row | {"answer": "\\frac{1}{"}) + "\n" for row in GOOD))
    source = config.data.train.model_copy(update={"problems": None, "path": str(bad)})
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": source, "test": source})})
    assert len(ProblemSet.load(config, load_tokenizer(config.model)).train) == 8


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["rollout.prompts_per_step=9"], "data.train has 8 problems and 9 are used at once"),
        (["eval.num_problems=20"], "data.test has 8 problems and 20 are used at once"),
        (["data.max_prompt_tokens=3"], "data.train: row 0: the prompt has"),
    ],
)
def test_data_that_does_not_fit_the_run_is_refused_by_split(load, overrides, told):
    with pytest.raises(DataError, match=told):
        load(GOOD, *overrides)


def prompt(i: int, solution: str | None) -> EncodedPrompt:
    return EncodedPrompt(i, Example(f"p{i}", str(i), solution, {}), f"text {i}", [i])


def test_demonstrations_are_solutions_or_the_bare_answer_in_the_share_asked_for():
    prompts = [prompt(i, f"steps {i}") for i in range(1000)]
    for share in (0.0, 0.25, 0.6, 1.0):
        rows = demonstrations(prompts, SFTConfig(direct_fraction=share))
        assert [row.prompt_ids for row in rows] == [p.token_ids for p in prompts]
        direct = [row.completion == f"\\boxed{{{i}}}" for i, row in enumerate(rows)]
        assert sum(direct) == pytest.approx(1000 * share, abs=3)
        assert sum(direct[:100]) == pytest.approx(100 * share, abs=3)  # spread evenly
        assert all(d or row.completion == f"steps {i}" for i, (d, row) in enumerate(zip(direct, rows, strict=True)))


def test_problems_without_a_solution_are_left_out_and_none_at_all_is_an_error():
    rows = demonstrations([prompt(0, None), prompt(1, "steps 1"), prompt(2, None)], SFTConfig())
    assert rows == [([1], "steps 1")]
    with pytest.raises(DataError, match="solution_column"):
        demonstrations([prompt(0, None)], SFTConfig(direct_fraction=1.0))


def test_solutions_to_imitate_end_as_an_answer_does_and_are_no_longer(load):
    assert load(GOOD).solutions == []
    rows = [*GOOD, {"problem": "9+9", "answer": "18", "solution": "long " * 20 + "\\boxed{18}"}]
    problems = load(rows, "data.train.solution_column=solution", "learner.ptx_weight=0.1", "learner.ptx_batch_size=8")
    tokenizer = load_tokenizer(ModelConfig())
    assert len(problems.solutions) == 8
    for solution, prompt in zip(problems.solutions, problems.train, strict=False):
        assert solution.prompt_ids == prompt.token_ids
        assert tokenizer.decode(solution.completion_ids[:-1]) == prompt.example.solution
        assert solution.completion_ids[-1] == tokenizer.eos_token_id


def test_too_few_solutions_to_imitate_are_refused(load):
    rows = [{k: v for k, v in row.items() if k != "solution"} for row in GOOD]
    with pytest.raises(DataError, match=r"learner.ptx_weight = 0.1 imitates 16 worked solutions a step, and .* has 0"):
        load(rows, "learner.ptx_weight=0.1")
