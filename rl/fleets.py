"""The actors of a run: who samples, who scores, who learns, and how they are spread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltarl.actor.fleet import Fleet
from deltarl.actor.gang import Gang
from deltarl.actor.host import WorkerSpec
from deltarl.reward.rewards import RewardSpec, Scorer
from deltarl.rl.config import RunConfig
from deltarl.rl.in_process import InProcess
from deltarl.rl.learner import Learner
from deltarl.rl.sft_progress import SFTProgress
from deltarl.rl.warm_start import WarmStart
from deltarl.rollout.worker import RolloutWorker


@dataclass(frozen=True)
class Fleets:
    rollout: Fleet | InProcess
    reward: Fleet | InProcess
    learner: Gang | InProcess

    @classmethod
    def start(cls, config: RunConfig, model_path: Path) -> "Fleets":
        """Starts every actor of the run; they take over the model from `model_path`."""
        path = str(model_path.resolve())
        rollout, learner = config.rollout, config.learner
        sampler = WorkerSpec(
            RolloutWorker,
            (path,),
            {
                "max_num_seqs": rollout.max_num_seqs,
                "backend": rollout.backend,
                "batch_invariant": learner.batch_invariant,
                "record_routing": learner.router_replay,
            },
            num_cpus=rollout.num_cpus,
            num_gpus=rollout.num_gpus,
            num_threads=rollout.num_threads,
        )
        scorer = WorkerSpec(Scorer, kwargs=scorer_arguments(config), num_cpus=config.reward.num_cpus)
        updates = config.steps * learner.num_minibatches
        rank = WorkerSpec(
            Learner,
            (learner, path, updates, rollout.temperature, rollout.max_tokens),
            num_cpus=learner.num_cpus,
            num_gpus=learner.num_gpus,
            num_threads=learner.num_threads,
        )
        if config.in_process:
            samplers, scorers = InProcess(sampler, rollout.num_workers), InProcess(scorer, config.reward.num_workers)
            return cls(samplers, scorers, InProcess(rank))
        # First of all: ranks need a GPU each, and workers that came before might leave them no two.
        ranks = Gang("learner", rank, learner.num_ranks, config.heartbeat)
        return cls(
            Fleet("rollout workers", sampler, rollout.num_workers, rollout.stuck_after, config.heartbeat),
            Fleet("reward workers", scorer, config.reward.num_workers, config.reward.stuck_after, config.heartbeat),
            ranks,
        )

    def close(self) -> None:
        for fleet in (self.rollout, self.reward, self.learner):
            fleet.close()


def warm_start(config: RunConfig, folder: Path, demonstrations: Sequence[Mapping[str, str]]) -> None:
    """Makes the checkpoint RL starts from in `folder`, on as many ranks as will learn afterwards."""
    learner = config.learner
    spec = WorkerSpec(
        WarmStart,
        (config,),
        num_cpus=learner.num_cpus,
        num_gpus=learner.num_gpus,
        num_threads=learner.num_threads,
    )
    ranks = Gang("warm start", spec, learner.num_ranks, config.heartbeat)
    try:
        calls = ranks.submit("make", folder.resolve(), demonstrations)
        assert config.sft is not None
        progress = SFTProgress(folder.parent, config.sft.steps)
        while not ranks.done(calls, timeout=1.0):
            progress.update()
        progress.close()
        ranks.results(calls)
    finally:
        ranks.close()


def scorer_arguments(config: RunConfig) -> dict[str, Any]:
    """Keyword arguments of `Scorer`."""
    reward, limit = config.reward, config.rollout.max_tokens
    rewards = [RewardSpec(f.name, _absolute(f.function), f.weight, f.args) for f in reward.functions]
    if reward.overlong_fraction:
        cache = max(1, round(reward.overlong_fraction * limit))
        rewards.append(RewardSpec("overlong", "soft_overlong", 1.0, {"max_tokens": limit, "cache": cache}))
    return {"rewards": rewards, "marker": reward.marker, "timeout": reward.timeout}


def cpus_needed(config: RunConfig) -> float:
    """Ray CPUs the run's actors reserve together."""
    return (
        config.rollout.num_workers * config.rollout.num_cpus
        + config.reward.num_workers * config.reward.num_cpus
        + config.learner.num_ranks * config.learner.num_cpus
    )


def gpu_shares(config: RunConfig) -> list[float]:
    """What each of the run's actors that use a GPU reserves of one."""
    rollout, learner = config.rollout, config.learner
    shares = [learner.num_gpus] * learner.num_ranks + [rollout.num_gpus] * rollout.num_workers
    return [share for share in shares if share]


def _absolute(function: str) -> str:
    """Plug-in files are named relative to where the run was started, which need not be where an actor runs."""
    path, colon, name = function.rpartition(":")
    return f"{Path(path).resolve()}{colon}{name}" if path.endswith(".py") else function
