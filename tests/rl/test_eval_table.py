"""Which checkpoints, sets and lengths an evaluation's table has, and how it is written."""

import json

import pandas as pd
import pytest

from deltarl.rl.checkpoint import CheckpointStore
from deltarl.rl.cli import ConfigError, load_config
from deltarl.rl.eval_table import at_lengths, checkpoint_in, show, write
from deltarl.rl.run_eval import evaluate_all, evaluate_checkpoint, main
from deltarl.rl.warm_start import load_tokenizer, new_model

RECALL = "{problems: [{family: recall, level: 1, length: 64}], num_problems: 6}"
EXACT = "reward.functions=[{name: exact, function: exact_match}]"


@pytest.fixture
def checkpoint(tiny):
    """A step of a run of the tiny recipe that learned nothing."""
    config = tiny("model.max_position_embeddings=256")
    store = CheckpointStore(config.run_dir, 2)
    folder = store.begin()
    tokenizer = load_tokenizer(config.model)
    new_model(config.model, len(tokenizer), 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return store.complete(folder, 3, {})


def test_a_run_stands_for_its_newest_checkpoint(checkpoint, tmp_path):
    assert checkpoint_in(checkpoint) == checkpoint_in(checkpoint.parents[1]) == checkpoint.resolve()
    assert checkpoint_in(checkpoint.with_name("latest")) == checkpoint.resolve()
    with pytest.raises(ConfigError, match="is no checkpoint"):
        checkpoint_in(tmp_path)


def test_sets_with_a_length_are_asked_at_each_and_the_others_stay(tiny):
    config = tiny(f"data.more_tests={{recall: {RECALL}}}")
    found, main_set = at_lengths(config, [64, 128])
    assert main_set == "test"
    assert found.data.test == config.data.test
    lengths = {name: source.problems[0]["length"] for name, source in found.data.more_tests.items()}
    assert lengths == {"recall-64": 64, "recall-128": 128}
    found, main_set = at_lengths(tiny(f"data.test={RECALL}"), [80, 90])
    assert (main_set, found.data.test.problems[0]["length"], *found.data.more_tests) == ("test-80", 80, "test-90")
    with pytest.raises(ConfigError, match=r"no held-out set has problems with a length, and --lengths \[64\]"):
        at_lengths(tiny(), [64])


def test_the_table_has_a_row_for_each_checkpoint_and_set(tiny, checkpoint):
    config = tiny("data.max_prompt_tokens=129", "model.max_position_embeddings=256", EXACT, f"data.test={RECALL}")
    rows = evaluate_all(config, [checkpoint, checkpoint.parents[1]], [64, 128])
    assert [row["set"] for row in rows] == ["test-64", "test-128"] * 2
    assert {row["checkpoint"] for row in rows} == {str(checkpoint.resolve())}
    for row in rows:
        asked = int(row["set"].removeprefix("test-"))
        assert asked - 6 <= row["prompt_tokens"] <= asked + 1
        assert (row["problems"], row["pass@1"]) == (6, 0.0)
    assert rows[:2] == rows[2:]


def test_without_folders_it_is_the_newest_of_the_recipes_run(tiny, checkpoint):
    (row,) = evaluate_all(tiny(), [], [])
    logged = evaluate_checkpoint(tiny())
    assert row.pop("checkpoint") == logged.pop("checkpoint")
    assert (row.pop("set"), row.pop("problems"), row.pop("prompt_tokens") > 3) == ("test", 6, True)
    assert {f"eval/{name}": value for name, value in row.items()} == logged


ROWS = [
    {"checkpoint": f"/runs/{run}/checkpoints/step_3", "set": s, "problems": 6, "pass@1": 0.5, "pass@1/low": 0.25,
     "pass@1/high": 0.75, "len_mean": 7.0}
    for run, s in (("a", "test"), ("a", "recall-64"), ("b", "test"))
]  # fmt: skip


def test_columns_are_aligned_and_intervals_beside_their_values():
    head, *lines = show(ROWS).split("\n")
    assert head.split() == ["checkpoint", "set", "problems", "pass@1", "len_mean"]
    assert {len(line) for line in lines} == {len(head)}
    assert lines[1].split() == ["a/checkpoints/step_3", "recall-64", "6", "0.500", "[0.250,", "0.750]", "7"]


def test_files_have_all_columns(tmp_path):
    write(ROWS, tmp_path / "new" / "table")
    assert json.loads((tmp_path / "new" / "table.json").read_text()) == ROWS
    assert pd.read_csv(tmp_path / "new" / "table.csv").to_dict("records") == ROWS


def test_the_command_prints_and_writes_the_table(tiny, checkpoint, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(tiny().model_dump_json())
    assert load_config(recipe).name == "tiny"
    command = ["--config", str(recipe), "--checkpoints", str(checkpoint), "--out", str(tmp_path / "t")]
    assert main(command) == 0
    assert "checkpoints/step_000003" in capsys.readouterr().out
    assert (tmp_path / "t.csv").is_file()
    assert main([*command[:3], str(tmp_path)]) == 2
    assert "is no checkpoint" in capsys.readouterr().err
