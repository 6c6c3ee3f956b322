"""The actors of a run: who samples, who scores, who learns, and how they are spread."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltarl.actor.fleet import Fleet
from deltarl.actor.gang import Gang
from deltarl.actor.host import Places, WorkerSpec
from deltarl.actor.placement import cluster_nodes, reserved
from deltarl.reward.rewards import RewardSpec, Scorer
from deltarl.rl.config import RunConfig
from deltarl.rl.in_process import InProcess
from deltarl.rl.layout import Role, layout
from deltarl.rl.learner import Learner
from deltarl.rl.problem_set import Demonstration
from deltarl.rl.run_dir import log_folder
from deltarl.rl.sft_progress import SFTProgress
from deltarl.rl.timeline import Timeline
from deltarl.rl.warm_start import WarmStart
from deltarl.rollout.in_flight import InFlightWorker
from deltarl.rollout.worker import RolloutWorker


@dataclass(frozen=True)
class Fleets:
    rollout: Fleet | InProcess
    reward: Fleet | InProcess
    learner: Gang | InProcess
    timeline: Timeline

    @classmethod
    def start(cls, config: RunConfig, model_path: Path, places: Mapping[Role, Places] = {}) -> "Fleets":
        """Starts every actor of the run, where `places` says; they take over the model from `model_path`."""
        timeline = Timeline(config.run_dir)
        seen: dict[str, Any] = {"watch": timeline}
        if not config.in_process:
            seen["logs"] = log_folder(config.run_dir)
        path = str(model_path.resolve())
        rollout, learner = config.rollout, config.learner
        sampler = _sampler(config, path, places=places.get("rollout"), **seen)
        scorer = WorkerSpec(
            Scorer,
            kwargs=scorer_arguments(config),
            num_cpus=config.reward.num_cpus,
            places=places.get("reward"),
            fleet="reward",
            **seen,
        )
        updates = config.steps * learner.num_minibatches
        rank = WorkerSpec(
            Learner,
            (learner, path, updates, rollout.temperature, rollout.max_tokens),
            num_cpus=learner.num_cpus,
            num_gpus=learner.num_gpus,
            num_threads=learner.num_threads,
            places=places.get("learner"),
            fleet="learner",
            **seen,
        )
        if config.in_process:
            samplers, scorers = InProcess(sampler, rollout.num_workers), InProcess(scorer, config.reward.num_workers)
            return cls(samplers, scorers, InProcess(rank), timeline)
        # First of all: ranks need a GPU each, and workers that came before might leave them none in their bundle.
        with ExitStack() as started:  # closed again if what comes after cannot be started
            started.callback(timeline.close)
            ranks = Gang("learner", rank, learner.num_ranks, config.heartbeat)
            started.callback(ranks.close)
            workers = Fleet("rollout workers", sampler, rollout.num_workers, rollout.stuck_after, config.heartbeat)
            started.callback(workers.close)
            limits = config.reward.stuck_after, config.heartbeat
            fleets = cls(workers, Fleet("reward workers", scorer, config.reward.num_workers, *limits), ranks, timeline)
            started.pop_all()
        return fleets

    def idle(self) -> dict[str, float]:
        """`idle/*` of the time since it was asked for last."""
        fleets = {"rollout": self.rollout, "reward": self.reward, "learner": self.learner}
        return self.timeline.idle({name: 1 if isinstance(f, InProcess) else len(f) for name, f in fleets.items()})

    def close(self) -> None:
        for fleet in (self.rollout, self.reward, self.learner):
            fleet.close()
        self.timeline.close()


@contextmanager
def placed(config: RunConfig, learner_alone: bool = False) -> Iterator[dict[Role, Places]]:
    """Holds a place on the cluster for every actor of the run, or for the learner's ranks alone.

    Raises:
        PlacementError: the cluster is too small.
    """
    found = layout(config, cluster_nodes(), learner_alone)
    with reserved(found.bundles, found.spread) as group:
        yield {role: Places(group, bundles) for role, bundles in found.places.items()}


def warm_start(
    config: RunConfig, folder: Path, demonstrations: Sequence[Demonstration], places: Mapping[Role, Places]
) -> None:
    """Makes the checkpoint RL starts from in `folder`, on as many ranks as will learn afterwards."""
    learner = config.learner
    spec = WorkerSpec(
        WarmStart,
        (config,),
        num_cpus=learner.num_cpus,
        num_gpus=learner.num_gpus,
        num_threads=learner.num_threads,
        places=places["learner"],
        fleet="learner",
        logs=log_folder(folder.parent),
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


def _sampler(config: RunConfig, model_path: str, **options: Any) -> WorkerSpec:
    """Of the rollout workers; `options` are those of `WorkerSpec` that do not depend on what is hosted."""
    rollout, learner = config.rollout, config.learner
    engine: dict[str, Any] = {
        "max_num_seqs": rollout.max_num_seqs,
        "backend": rollout.backend,
        "batch_invariant": learner.batch_invariant,
        "record_routing": learner.router_replay,
    }
    cls: type[RolloutWorker] = RolloutWorker
    if rollout.in_flight != "none":
        cls = InFlightWorker
        engine["in_flight"] = rollout.in_flight
        options["beside"] = ("load_weights", "receive_weights")
    return WorkerSpec(
        cls,
        (model_path,),
        engine,
        num_cpus=rollout.num_cpus,
        num_gpus=rollout.num_gpus,
        num_threads=rollout.num_threads,
        fleet="rollout",
        **options,
    )


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
