"""One run folder belongs to one configuration, and holds no secrets."""

import logging

import pytest
import yaml

from deltarl.rl import difficulty
from deltarl.rl.cli import ConfigError, load_config
from deltarl.rl.run_dir import log_to, open_run_dir


def test_the_folder_holds_the_whole_resolved_config_and_opens_again(tiny):
    config = tiny()
    run_dir = open_run_dir(config)
    assert run_dir == config.run_dir
    written = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert written["learner"]["epsilon_high"] == config.learner.epsilon_high  # a default, spelled out
    assert load_config(run_dir / "config.yaml") == config
    assert open_run_dir(config) == run_dir


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed=7", "seed: 3 there, 7 here"),
        ("learner.learning_rate=0.5", "learner.learning_rate: 0.001 there, 0.5 here"),
        ("rollout.num_workers=1", "rollout.num_workers: 2 there, 1 here"),
        ("sft=null", "sft.batch_size: 8 there, None here"),
        ("data.train.num_problems=99", "data.train.num_problems: 48 there, 99 here"),
    ],
)
def test_another_config_is_refused_by_the_name_of_what_differs(tiny, override, told):
    run_dir = open_run_dir(tiny())
    (run_dir / "initial").mkdir()
    before = (run_dir / "config.yaml").read_text()
    with pytest.raises(ConfigError, match="name=tiny-2") as error:
        open_run_dir(tiny(override))
    assert told in str(error.value)
    assert (run_dir / "config.yaml").read_text() == before


def test_a_folder_in_which_nothing_was_computed_is_free(tiny):
    open_run_dir(tiny())
    run_dir = open_run_dir(tiny("seed=7"))
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["seed"] == 7


def test_measured_success_rates_belong_to_the_config_they_were_measured_under(tiny):
    run_dir = open_run_dir(tiny())
    (run_dir / difficulty.FILE).write_text("[0.5]")
    with pytest.raises(ConfigError, match=r"data\.train\.num_problems: 48 there, 99 here"):
        open_run_dir(tiny("data.train.num_problems=99"))


def test_a_run_from_before_a_key_existed_has_its_default_and_one_with_unknown_keys_is_refused(tiny):
    run_dir = open_run_dir(tiny())
    (run_dir / "initial").mkdir()
    file = run_dir / "config.yaml"
    older = yaml.safe_load(file.read_text())
    del older["rollout"]["max_staleness"]
    file.write_text(yaml.safe_dump(older))
    with pytest.raises(ConfigError, match=r"rollout\.max_staleness: 0 there, 1 here"):
        open_run_dir(tiny("rollout.max_staleness=1"))
    assert open_run_dir(tiny()) == run_dir
    file.write_text(yaml.safe_dump(older | {"no_such_key": 1}))
    with pytest.raises(ConfigError, match="this version cannot read"):
        open_run_dir(tiny())


def test_more_steps_are_free_unless_the_learning_rate_depends_on_them(tiny):
    (open_run_dir(tiny()) / "initial").mkdir()
    assert open_run_dir(tiny("steps=9")).is_dir()
    (open_run_dir(tiny("name=other", "learner.lr_schedule=cosine")) / "initial").mkdir()
    with pytest.raises(ConfigError, match="steps: 6 there, 9 here"):
        open_run_dir(tiny("name=other", "learner.lr_schedule=cosine", "steps=9"))


def test_what_does_not_change_the_result_may_differ(tiny):
    (open_run_dir(tiny()) / "initial").mkdir()
    free = ["checkpoint.interval=5", "logging.samples_per_step=0", "rollout.num_cpus=1", "learner.num_cpus=1"]
    assert open_run_dir(tiny(*free, "rollout.weight_transport=object_store")).is_dir()


def test_another_name_is_another_folder(tiny):
    assert open_run_dir(tiny()) != open_run_dir(tiny("name=other", "seed=9"))


def test_a_config_file_that_a_kill_left_empty_does_not_lock_the_folder(tiny):
    config = tiny()
    (open_run_dir(config) / "config.yaml").write_text("")
    assert load_config(open_run_dir(config) / "config.yaml") == config


def test_secrets_of_the_environment_are_neither_in_the_config_nor_in_the_log(tiny, monkeypatch):
    secret = "sk-0123456789abcdef"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    config = tiny(f"reward.functions=[{{name: a, args: {{key: {secret}}}}}]", f"logging.wandb_project=of-{secret}")
    run_dir = open_run_dir(config)
    written = (run_dir / "config.yaml").read_text()
    assert secret not in written
    assert written.count("<WANDB_API_KEY>") == 2
    (run_dir / "initial").mkdir()
    assert open_run_dir(config) == run_dir  # it is the same run still

    logger = logging.getLogger("deltarl.test_secrets")
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    try:
        log_to(run_dir)
        logger.info("with %s", secret)
        try:
            raise ValueError(secret)
        except ValueError:
            logger.exception("it failed")
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers = before
    log = (run_dir / "log.txt").read_text()
    assert secret not in log
    assert log.count("<WANDB_API_KEY>") == 2
