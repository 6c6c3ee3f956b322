"""The algorithms by name: for each, the switches it sets. What a recipe says itself goes before these."""

from typing import Any, Literal, get_args

Algorithm = Literal[
    "grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "reinforce_pp_baseline", "kimi_pmd", "ppo"
]

PLAIN_CLIP = {"epsilon": 0.2, "epsilon_high": 0.2}

PRESETS: dict[Algorithm, dict[str, dict[str, Any]]] = {
    "grpo": {},  # the defaults: with clip-higher and a mean over tokens, as it is used today
    "dr_grpo": {"learner": {**PLAIN_CLIP, "scale_rewards": "none", "aggregation": "constant"}},
    "dapo": {
        "learner": {"epsilon": 0.2, "epsilon_high": 0.28, "aggregation": "token_mean"},
        "rollout": {"dynamic_sampling": True, "max_refills": 3},
        "reward": {"overlong_fraction": 0.2},
    },
    "gspo": {
        "learner": {
            "importance_sampling_level": "sequence",
            "epsilon": 3e-4,
            "epsilon_high": 4e-4,
            "aggregation": "sequence_mean",
        }
    },
    # The weight is clipped at 5, as in ScaleRL (arXiv 2510.13786), and not below.
    "cispo": {"learner": {"loss_type": "cispo", "epsilon": 1.0, "epsilon_high": 4.0}},
    "rloo": {
        "learner": {
            **PLAIN_CLIP,
            "baseline": "leave_one_out",
            "scale_rewards": "none",
            "importance_sampling_level": "product",
            "aggregation": "sequence_mean",
            "kl_in": "reward",
            "kl_estimator": "k1",
        }
    },
    "reinforce_pp": {
        "learner": {
            **PLAIN_CLIP,
            "baseline": "none",
            "scale_rewards": "whiten",
            "kl_in": "reward",
            "kl_estimator": "k1",
        }
    },
    "reinforce_pp_baseline": {"learner": {**PLAIN_CLIP, "scale_rewards": "whiten", "kl_estimator": "k2"}},
    "kimi_pmd": {"learner": {"loss_type": "mirror_descent", "scale_rewards": "none", "aggregation": "sequence_mean"}},
    "ppo": {
        "learner": {
            **PLAIN_CLIP,
            "baseline": "critic",
            "scale_rewards": "whiten",
            "kl_in": "reward",
            "kl_estimator": "k1",
        }
    },
}


def with_preset(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe with what its algorithm sets filled in; what is wrong in it is left for validation to tell."""
    name = data.get("algorithm", "grpo")
    if name not in get_args(Algorithm):
        return data
    filled = dict(data)
    for section, values in PRESETS[name].items():
        given = data.get(section, {})
        if isinstance(given, dict):
            filled[section] = values | given
    return filled
