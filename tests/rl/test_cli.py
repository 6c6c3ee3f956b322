"""Recipes and overrides: what is wrong is said, with the key it is about, before anything starts."""

from pathlib import Path

import pytest
import yaml

from deltarl.rl.cli import ConfigError, dump_config, load_config, parse_config
from deltarl.rl.config import RunConfig

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
MINIMAL = {
    "name": "run",
    "steps": 10,
    "data": {
        "train": {"problems": [{"family": "arithmetic", "level": 1}]},
        "test": {"problems": [{"family": "arithmetic", "level": 1}]},
    },
}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def refusal(recipe: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(recipe, overrides)
    return str(error.value)


def test_there_are_recipes():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_recipe_loads_and_says_again_what_it_says(path, tmp_path):
    config = load_config(path)
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(dump_config(config))
    assert load_config(dumped) == config


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("sed=1", "sed", "seed"),
        ("learner.learning_rat=1", "learner.learning_rat", "learner.learning_rate"),
        ("data.train.num_problem=5", "data.train.num_problem", "data.train.num_problems"),
        ("rollot.num_workers=1", "rollot", "rollout"),
        ("sft.step=5", "sft.step", "sft.steps"),
    ],
)
def test_an_unknown_key_names_the_nearest_of_its_section(recipe, override, key, nearest):
    message = refusal(recipe, override)
    assert f"unknown key {key!r}" in message
    assert f"did you mean {nearest!r}?" in message


def test_an_unknown_key_like_no_other_lists_the_valid_ones(recipe):
    message = refusal(recipe, "logging.xyzzy=1")
    assert "unknown key 'logging.xyzzy'" in message
    assert "valid keys are wandb, wandb_project, tensorboard, samples_per_step" in message


def test_an_unknown_key_within_a_list_of_sections(recipe):
    recipe.write_text(yaml.safe_dump(MINIMAL | {"reward": {"functions": [{"name": "a", "wieght": 2}]}}))
    message = refusal(recipe)
    assert "unknown key 'reward.functions.0.wieght'; did you mean 'reward.functions.0.weight'?" in message


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("steps=many", "steps"),
        ("steps=0", "steps"),
        ("seed=-1", "seed"),
        ("learner.learning_rate=-1", "learner.learning_rate"),
        ("learner.learning_rate=fast", "learner.learning_rate"),
        ("learner.scale_rewards=sometimes", "learner.scale_rewards"),
        ("rollout.top_p=1.5", "rollout.top_p"),
        ("eval=3", "eval"),
        ("name=a/b", "name"),
        ("rollout.num_generations=1", "num_generations = 1"),
        ("data.train.num_problems=31", "data.train.num_problems = 31, but 32 are used at once"),
        ("data.test.num_problems=100", "data.test.num_problems = 100, but 128 are used at once"),
        ("learner.num_minibatches=513", "512 samples a step cannot be shared"),
        ("rollout.max_tokens=257", "exceeds model.max_position_embeddings = 512"),
        ("data.test.path=x.jsonl", "exactly one of `problems`"),
        ("data.train.problems=null", "exactly one of `problems`"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(recipe, override, told):
    assert told in refusal(recipe, override)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rollout.max_staleness=0", "'keep' does not go with rollout.max_staleness = 0: no sampler is at work"),
        (
            "rollout.backend=vllm",
            "'keep' does not go with rollout.backend = 'vllm': it takes new weights between batches",
        ),
        ("in_process=true", "'keep' does not go with in_process = True: one process samples and learns in turns"),
        ("rollout.in_flight=drop", "rollout.in_flight"),
    ],
)
def test_weights_in_flight_are_refused_where_they_cannot_come(recipe, override, told):
    fine = ["rollout.in_flight=keep", "rollout.max_staleness=1"]
    assert load_config(recipe, fine).rollout.in_flight == "keep"
    assert told in refusal(recipe, *fine, override)


def test_a_critic_that_warms_up_the_whole_run_is_refused(recipe):
    told = refusal(recipe, "algorithm=ppo", "steps=2", "learner.critic.warmup_updates=2")
    assert "learner.critic.warmup_updates = 2 of steps = 2" in told


def test_rewards_of_one_name_are_refused(recipe):
    recipe.write_text(yaml.safe_dump(MINIMAL | {"reward": {"functions": [{"name": "a"}, {"name": "a"}]}}))
    assert "distinct names" in refusal(recipe)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("learner.learning_rate=1e-4", "learner.learning_rate", 1e-4),
        ("learner.learning_rate=0.5", "learner.learning_rate", 0.5),
        ("seed=12", "seed", 12),
        ("name=a.b-c_1", "name", "a.b-c_1"),
        ("model.path=some/folder=odd", "model.path", "some/folder=odd"),
        ("model.rope=true", "model.rope", True),
        ("model.gate_lower_bound=null", "model.gate_lower_bound", None),
        ("model.tokenizer_extra_tokens=[a, b]", "model.tokenizer_extra_tokens", ["a", "b"]),
        ("sft.steps=7", "sft.steps", 7),  # a section the recipe does not have
        ("sft=null", "sft", None),
    ],
)
def test_an_override_is_what_it_would_be_in_the_file(recipe, override, key, value):
    found = load_config(recipe, [override])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_a_list_of_sections_can_be_overridden(recipe):
    config = load_config(recipe, ["data.train.problems=[{family: arithmetic, level: 2}]"])
    assert config.data.train.problems == [{"family": "arithmetic", "level": 2}]


def test_the_last_override_of_a_key_counts_and_other_keys_stay(recipe):
    config = load_config(recipe, ["learner.beta=0.1", "learner.epsilon=0.3", "learner.beta=0.2"])
    assert (config.learner.beta, config.learner.epsilon, config.steps) == (0.2, 0.3, 10)


@pytest.mark.parametrize("override", ["seed", "=3", "--seed"])
def test_an_override_that_is_none_is_refused(recipe, override):
    assert "key=value" in refusal(recipe, override)


def test_files_that_are_no_recipe(tmp_path):
    assert "cannot read" in refusal(tmp_path / "missing.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1, 2")
    assert "not valid YAML" in refusal(bad)
    bad.write_bytes(b"name: \xff")
    assert "bad.yaml" in refusal(bad)
    for text in ("", "- a\n- b\n", "just text"):
        bad.write_text(text)
        assert "must hold a mapping" in refusal(bad)


def test_a_key_within_a_named_test_set_is_checked(recipe):
    assert "did you mean 'data.more_tests.amc.limit'" in refusal(recipe, "data.more_tests.amc.limits=3")
    assert "data.more_tests" in refusal(recipe, "data.more_tests={a/b: {path: x}}")
    assert load_config(recipe, ["data.more_tests.amc.path=amc.jsonl"]).data.more_tests["amc"].path == "amc.jsonl"


def test_a_required_key_that_is_missing_is_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in MINIMAL.items() if k != "steps"}))
    assert "steps: Field required" in refusal(path)


def test_the_command_line_exits_with_the_message(recipe, capsys):
    assert isinstance(parse_config("test", ["--config", str(recipe), "seed=5"]), RunConfig)
    with pytest.raises(SystemExit) as exit_:
        parse_config("test", ["--config", str(recipe), "learner.lr=1"])
    assert exit_.value.code == 2
    assert "configuration error: unknown key 'learner.lr'" in capsys.readouterr().err
