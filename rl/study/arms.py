"""From a study to the configurations of its runs: one recipe, a few keys apart, with equal parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml

from deltarl.model.config import hybrid_config
from deltarl.model.hybrid import HybridForCausalLM
from deltarl.rl.cli import ConfigError, load_config
from deltarl.rl.config import RunConfig
from deltarl.rl.study.config import StudyConfig
from deltarl.rl.warm_start import load_tokenizer

TOLERANCE = 0.01  # by which arms' numbers of parameters may differ
GRAIN = 4  # the fitted size is a multiple of it


@dataclass(frozen=True)
class Arm:
    """One architecture of the study: the keys that make it, and its number of parameters."""

    name: str
    keys: Mapping[str, Any]
    parameters: int


def make_arms(study: StudyConfig) -> list[Arm]:
    """The arms in the order of the study, fitted to the baseline's number of parameters.

    Raises:
        ConfigError: an arm's keys make no recipe, or no value of `match_key` gives it that number within 1 %; or the
            arms would not all see the same problems.
    """
    _check_same_problems(study)
    target = _parameters(study, study.arms[study.baseline])
    arms = []
    for name, keys in study.arms.items():
        fitted = dict(keys)
        if study.match_key is not None and name != study.baseline:
            fitted[study.match_key] = _fitted(study, keys, study.match_key, target)
        found = _parameters(study, fitted)
        if study.match_key is not None and abs(found - target) > TOLERANCE * target:
            raise ConfigError(
                f"arm {name} has {found:,} parameters with {study.match_key} = {fitted[study.match_key]}, and the "
                f"baseline {target:,}: no value comes within {TOLERANCE:.0%}; change its keys, or the match_key"
            )
        arms.append(Arm(name, fitted, found))
    return arms


def run_config(study: StudyConfig, keys: Mapping[str, Any], seed: int, folder: str, name: str) -> RunConfig:
    """The recipe, the keys of the study and, before these, `keys`: a run of one process in a folder of the study."""
    changes = {**study.set, **keys}
    one_process = {"in_process": True, "learner.num_ranks": 1, "rollout.num_workers": 1, "reward.num_workers": 1}
    threads = {"learner.num_threads": study.num_threads, "rollout.num_threads": study.num_threads}
    gpus = {"learner.num_gpus": study.num_gpus, "rollout.num_gpus": study.num_gpus}
    own = {"name": name, "seed": seed, "output_dir": str(study.folder.resolve() / folder)}
    merged = {**changes, **one_process, **threads, **gpus, **own}
    overrides = [f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}" for key, value in merged.items()]
    return load_config(Path(study.recipe), [text.removesuffix("\n...") for text in overrides])


def combinations(values: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value for each key."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def _check_same_problems(study: StudyConfig) -> None:
    config = run_config(study, {}, study.seeds[0], "sizes", "none")
    sampling = config.data.sampling
    for key, value, off in (
        ("data.sampling.order", sampling.order, sampling.order != "prioritised"),
        ("data.sampling.measure_samples", sampling.measure_samples, not sampling.measure_samples),
        ("rollout.dynamic_sampling", config.rollout.dynamic_sampling, not config.rollout.dynamic_sampling),
    ):
        if not off:
            raise ConfigError(
                f"{key} = {value!r} chooses problems by what the policy solves, so that each arm would get others: set "
                "it otherwise in the study's `set`"
            )


def _parameters(study: StudyConfig, keys: Mapping[str, Any]) -> int:
    config = run_config(study, keys, study.seeds[0], "sizes", "none").model
    if config.path is not None:
        raise ConfigError(f"a study makes its models, and the recipe has model.path = {config.path!r}: leave it out")
    with torch.device("meta"):
        return HybridForCausalLM(hybrid_config(vocab_size=len(load_tokenizer(config)), **config.sizes)).num_parameters()


def _fitted(study: StudyConfig, keys: Mapping[str, Any], match_key: str, target: int) -> int:
    """The value of `match_key`, in which the number of parameters is linear, that comes closest to `target`."""
    one, other = (_parameters(study, {**keys, match_key: GRAIN * n}) for n in (1, 2))
    if other == one:
        raise ConfigError(f"match_key = {match_key} does not change the number of parameters")
    return GRAIN * max(1, round(1 + (target - one) / (other - one)))
