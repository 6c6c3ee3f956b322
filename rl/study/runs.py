"""The runs of a study: what there is to do, and doing what is not done yet, several side by side over Ray."""

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from deltarl.actor import runtime
from deltarl.actor.fleet import Fleet
from deltarl.actor.host import WorkerSpec
from deltarl.rl.cli import ConfigError
from deltarl.rl.config import RunConfig
from deltarl.rl.run_dir import log_folder
from deltarl.rl.study.arms import Arm, combinations, make_arms, run_config
from deltarl.rl.study.config import StudyConfig
from deltarl.rl.study.worker import FINAL_FILE, StudyWorker, measured

log = logging.getLogger(__name__)

SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class StudyRun:
    """One run: an arm with its hyperparameters and a seed."""

    arm: Arm
    seed: int
    config: RunConfig
    warm: Path
    """The folder of the starting point, which runs of the same arm and seed share."""


def carry_out(study: StudyConfig) -> list[StudyRun]:
    """Does all of the study that is not done yet, and returns its runs, those of the sweep left out.

    Raises:
        ConfigError: what is wrong with an arm, before anything is started.
        WorkerLostError, Exception: of a run; the same command goes on from there.
    """
    arms = make_arms(study)
    for arm in arms:
        log.info("arm %s: %s parameters, %s", arm.name, f"{arm.parameters:,}", dict(arm.keys) or "the recipe as it is")
    planned = runs_of(study, arms, {})  # refuses bad keys now
    runtime.start(study.num_parallel * study.num_cpus, bool(study.num_gpus))
    try:
        worker = WorkerSpec(
            StudyWorker,
            num_cpus=study.num_cpus,
            num_gpus=study.num_gpus,
            num_threads=study.num_threads,
            fleet="study",
            logs=log_folder(study.folder),
        )
        fleet = Fleet("runs", worker, study.num_parallel)
        try:
            trials = _trials(study, arms)
            # The sweep's with the others, so that no worker is idle in between.
            starts = {run.warm: _warm_config(study, run.arm, run.seed) for run in [*trials, *planned]}
            fleet.map("warm_start", [(config,) for config in starts.values()])
            runs = runs_of(study, arms, _sweep(study, trials, fleet))
            log.info("%d runs: %d arms, seeds %s", len(runs), len(arms), study.seeds)
            fleet.map("run", [(run.config, run.warm, study.final) for run in runs])
        finally:
            fleet.close()
        # One after the other, with nothing beside them.
        alone = Fleet("decoding", worker, 1)
        try:
            alone.map("decode", [(run.config, study.decode) for run in runs if run.seed == study.seeds[0]])
        finally:
            alone.close()
    finally:
        runtime.stop()
    return runs


def done_before(study: StudyConfig) -> list[StudyRun]:
    """The runs of a study that was carried out, with what its sweep chose.

    Raises:
        ConfigError: some are not done.
    """
    file = study.folder / SWEEP_FILE
    chosen = json.loads(file.read_text())["best"] if study.sweep and file.exists() else {}
    runs = runs_of(study, make_arms(study), chosen)
    left = [run.config.name for run in runs if not measured(run.config, FINAL_FILE, study.final)]
    if left:
        raise ConfigError(f"{len(left)} of {len(runs)} runs are not done, {left[0]} for one: leave out --report-only")
    return runs


def runs_of(study: StudyConfig, arms: Sequence[Arm], chosen: Mapping[str, Mapping[str, Any]]) -> list[StudyRun]:
    """The runs that are compared; all arms of a seed before the next seed, so that a study that is cut short compares
    something.

    Args:
        chosen: each arm's hyperparameters from the sweep.
    """
    return [
        StudyRun(
            arm,
            seed,
            run_config(study, {**arm.keys, **chosen.get(arm.name, {})}, seed, "runs", f"{arm.name}-s{seed}"),
            _warm_config(study, arm, seed).run_dir,
        )
        for seed in study.seeds
        for arm in arms
    ]


def _warm_config(study: StudyConfig, arm: Arm, seed: int) -> RunConfig:
    return run_config(study, arm.keys, seed, "warm", f"{arm.name}-s{seed}")


@dataclass(frozen=True)
class _Trial(StudyRun):
    """A run of the sweep."""

    keys: Mapping[str, Any]
    """The hyperparameters it tries."""


def _trials(study: StudyConfig, arms: Sequence[Arm]) -> list[_Trial]:
    sweep = study.sweep
    if sweep is None:
        return []
    # Held-out problems are none of its business; the least evaluation there is.
    least = {"steps": sweep.steps, "eval.interval": sweep.steps, "eval.num_problems": 1, "eval.num_samples": 1}
    return [
        _Trial(
            arm,
            seed,
            run_config(study, {**arm.keys, **keys, **least}, seed, "sweep", _trial_name(arm, keys, seed)),
            _warm_config(study, arm, seed).run_dir,
            keys,
        )
        for keys in combinations(sweep.values)
        for arm in arms
        for seed in sweep.seeds
    ]


def _sweep(study: StudyConfig, trials: Sequence[_Trial], fleet: Fleet) -> dict[str, dict[str, Any]]:
    """Each arm's best combination; all trials with their marks go to sweep.json."""
    if study.sweep is None:
        return {}
    log.info("sweep: %d trials of %d steps", len(trials), study.sweep.steps)
    marks = fleet.map("trial", [(trial.config, trial.warm) for trial in trials])
    found = [
        {"arm": trial.arm.name, "keys": trial.keys, "seed": trial.seed, "mark": mark}
        for trial, mark in zip(trials, marks, strict=True)
    ]
    best = {name: _best([trial for trial in found if trial["arm"] == name]) for name in study.arms}
    (study.folder / SWEEP_FILE).write_text(json.dumps({"trials": found, "best": best}, indent=1))
    for name, keys in best.items():
        log.info("sweep: %s does best with %s", name, keys)
    return best


def _trial_name(arm: Arm, keys: Mapping[str, Any], seed: int) -> str:
    """Names the values, so that another sweep's trial is another run."""
    values = "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in keys.items())
    return re.sub(r"[^A-Za-z0-9._-]+", "_", f"{arm.name}-{values}-s{seed}")


def _best(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    marks: dict[str, list[float]] = {}
    keys = {}
    for trial in trials:
        name = json.dumps(trial["keys"], sort_keys=True)
        keys[name] = dict(trial["keys"])
        # One that diverged is worse than any.
        marks.setdefault(name, []).append(-math.inf if trial["mark"] is None else trial["mark"])
    return keys[max(marks, key=lambda name: fmean(marks[name]))]
