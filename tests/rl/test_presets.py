"""Algorithms by name, and combinations that make no sense."""

from pathlib import Path
from typing import get_args

import pytest

from deltarl.rl.cli import ConfigError, dump_config, load_config
from deltarl.rl.fleets import scorer_arguments
from deltarl.rl.presets import PRESETS, Algorithm, with_preset

TINY = Path(__file__).parent / "tiny.yaml"
DOCUMENT = Path(__file__).parents[2] / "docs" / "OBJECTIVES.md"


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(TINY, overrides)
    return str(error.value)


def test_every_name_has_a_preset_and_a_line_in_the_document():
    assert set(get_args(Algorithm)) == PRESETS.keys()
    assert all(f"| `{name}`" in DOCUMENT.read_text() for name in PRESETS)


def test_grpo_is_the_defaults():
    assert load_config(TINY, ["algorithm=grpo"]) == load_config(TINY)
    assert with_preset({"learner": {"beta": 1}}) == {"learner": {"beta": 1}}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_its_switches_and_says_again_what_it_says(name, tmp_path):
    config = load_config(TINY, [f"algorithm={name}"])
    for section, values in PRESETS[name].items():
        for key, value in values.items():
            assert getattr(getattr(config, section), key) == value
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(dump_config(config))
    assert load_config(dumped) == config


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("dr_grpo", "learner.aggregation", "token_mean"),
        ("dapo", "learner.epsilon_high", 0.2),
        ("dapo", "learner.aggregation", "sequence_mean"),
        ("dapo", "rollout.max_refills", 0),
        ("dapo", "reward.overlong_fraction", 0.0),
        ("gspo", "learner.epsilon", 1e-3),
        ("cispo", "learner.importance_sampling_level", "sequence"),
        ("rloo", "learner.scale_rewards", "batch"),
        ("reinforce_pp", "learner.kl_in", "loss"),
        ("kimi_pmd", "learner.tau", 0.5),
        ("ppo", "learner.kl_in", "loss"),
    ],
)
def test_what_the_recipe_says_goes_before_the_preset_and_the_rest_of_it_stays(name, key, value):
    preset = load_config(TINY, [f"algorithm={name}"]).model_dump()
    found = load_config(TINY, [f"algorithm={name}", f"{key}={value}"]).model_dump()
    section, switch = key.split(".")
    assert preset[section][switch] != value
    preset[section][switch] = value
    assert found == preset


def test_dynamic_sampling_alone_can_be_taken_out_of_dapo():
    config = load_config(TINY, ["algorithm=dapo", "rollout.dynamic_sampling=false", "rollout.max_refills=0"])
    assert not config.rollout.dynamic_sampling


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["algorithm=ppo2"], "'grpo', 'dr_grpo'"),
        (["algorithm=[1]"], "algorithm"),
        (["algorithm=dapo", "rollout=3"], "rollout"),
        (["learner.loss_type=mine"], "learner.loss_type = 'mine' is none of cispo, clip, mirror_descent"),
        (["learner.importance_sampling_level=sequence"], "take epsilon=3e-4 epsilon_high=4e-4"),
        (["algorithm=gspo", "learner.epsilon=0.2"], "learner.epsilon = 0.2"),
        (["learner.dual_clip=1"], "learner.dual_clip"),
        (["algorithm=cispo", "learner.dual_clip=3"], "dual_clip = 3.0 belongs to loss_type = 'clip', not to 'cispo'"),
        (["learner.baseline=none"], "use scale_rewards=whiten, or baseline=group"),
        (["algorithm=rloo", "rollout.num_generations=1"], "algorithm = 'rloo' with learner.baseline = 'leave_one_out'"),
        (["learner.num_ranks=2", "learner.num_gpus=0.5"], "ranks needs a GPU of its own; reserve more than half"),
        (["learner.batch_invariant=true", "learner.num_gpus=0.5"], "or set learner.num_gpus, rollout.num_gpus and"),
        (["rollout.num_generations=1"], "needs at least 2; one sample a problem is enough for algorithm=ppo"),
        (["algorithm=reinforce_pp", "rollout.dynamic_sampling=true"], "they teach too; use baseline=group"),
        (["algorithm=ppo", "rollout.dynamic_sampling=true"], "they teach too; use baseline=group"),
        (["learner.baseline=critic"], "learner.scale_rewards = 'group' divides the scores of answers"),
        (["algorithm=ppo", "learner.loss_type=mirror_descent"], "takes one advantage for a whole answer"),
        (["learner.critic.lam=0.9"], "learner.baseline = 'group' asks none; use algorithm=ppo"),
        (["algorithm=ppo", "learner.critic.lambda=0.9"], "unknown key 'learner.critic.lambda'"),
        (["algorithm=ppo", "learner.critic.trunk=shared", "learner.critic.epochs=2"], "use trunk=own, or epochs=1"),
        (["algorithm=ppo", "learner.critic.gamma=0"], "learner.critic.gamma"),
        (["rollout.max_refills=2"], "rollout.max_refills = 2 refills what dynamic sampling drops"),
        (["learner.beta=0.1", "learner.kl_estimator=k1"], "'k1' in the loss has an expected gradient of zero"),
        (
            ["learner.beta=0.1", "learner.kl_in=reward", "learner.kl_estimator=unbiased"],
            "use k1 or k3 with kl_in=reward",
        ),
        (["learner.kl_target=0.1"], "learner.kl_target = 0.1 needs a reference model"),
        (["learner.reference_interval=5"], "learner.reference_interval = 5 needs a reference model"),
        (["learner.min_entropy=0.1"], "learner.num_minibatches = 1 is the fewest"),
        (["learner.correction=tis"], "learner.correction"),
        (["learner.correction_bounds=[1.5, 2]"], "learner.correction_bounds = [1.5, 2.0] must enclose 1"),
        (["learner.correction_bounds=[0.5]"], "learner.correction_bounds"),
        (["learner.tau=0"], "learner.tau"),
        (["reward.overlong_fraction=1.5"], "reward.overlong_fraction"),
        (
            ["reward.functions=[{name: overlong}]", "reward.overlong_fraction=0.5"],
            "distinct names, got ['overlong', 'overlong']",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_value_and_a_remedy(overrides, told):
    assert told in refusal(*overrides)


@pytest.mark.parametrize("name", ["reinforce_pp", "ppo"])
def test_one_sample_a_problem_is_enough_where_no_group_is_compared(name):
    assert load_config(TINY, [f"algorithm={name}", "rollout.num_generations=1"]).rollout.num_generations == 1


def test_overlong_punishment_is_a_reward_function_with_the_run_s_token_limit():
    names = [r.name for r in scorer_arguments(load_config(TINY))["rewards"]]
    assert names == ["math", "format"]
    *_, overlong = scorer_arguments(load_config(TINY, ["algorithm=dapo"]))["rewards"]
    assert (overlong.name, overlong.args) == ("overlong", {"max_tokens": 10, "cache": 2})
