"""Which actors of a run share a bundle of CPUs and GPUs: `placement` of the configuration, worked out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from deltarl.actor.placement import Bundle, Node, fits
from deltarl.rl.config import RunConfig

Role = Literal["learner", "rollout", "reward"]


@dataclass(frozen=True)
class Layout:
    """Bundles, and in `places` the number of the bundle of each worker of a role, by role."""

    bundles: list[Bundle]
    spread: bool
    places: dict[Role, list[int]]


def layout(config: RunConfig, nodes: Sequence[Node], learner_alone: bool = False) -> Layout:
    """The bundles of a run.

    Args:
        nodes: of the cluster; decides whether disaggregated learner ranks can stay together.
        learner_alone: of the learner's ranks alone, as for a warm start without a run.
    """
    made = _colocated(config, learner_alone) if config.placement == "colocated" else _disaggregated(config, nodes)
    if learner_alone:
        last = max(made.places["learner"]) + 1
        return Layout(made.bundles[:last], made.spread, {"learner": made.places["learner"]})
    scorers = [Bundle("a reward worker", config.reward.num_cpus)] * config.reward.num_workers
    first = len(made.bundles)
    places: dict[Role, list[int]] = {**made.places, "reward": list(range(first, first + len(scorers)))}
    return Layout([*made.bundles, *scorers], made.spread, places)


def _colocated(config: RunConfig, learner_alone: bool) -> Layout:
    """A bundle a rank, with its samplers where both use the GPU; a bundle for each other sampler."""
    learner, rollout = config.learner, config.rollout
    shared = bool(learner.num_gpus and rollout.num_gpus) and not learner_alone
    bundles = []
    for rank in range(learner.num_ranks):
        beside = len(range(rank, rollout.num_workers, learner.num_ranks)) if shared else 0
        holds = f"a learner rank and its {beside} rollout workers" if beside else "a learner rank"
        cpus = learner.num_cpus + beside * rollout.num_cpus
        bundles.append(Bundle(holds, round(cpus, 4), round(learner.num_gpus + beside * rollout.num_gpus, 4)))
    places: dict[Role, list[int]] = {"learner": list(range(learner.num_ranks))}
    if shared:
        places["rollout"] = [worker % learner.num_ranks for worker in range(rollout.num_workers)]
    else:
        places["rollout"] = [len(bundles) + worker for worker in range(rollout.num_workers)]
        bundles += [Bundle("a rollout worker", rollout.num_cpus, rollout.num_gpus)] * rollout.num_workers
    return Layout(bundles, False, places)


def _disaggregated(config: RunConfig, nodes: Sequence[Node]) -> Layout:
    """GPUs that are the learner's or the samplers' as a whole. Ranks exchange gradients all the time and stay on one
    node if one can hold them; samplers meet nobody, and go wherever there is room."""
    learner, rollout = config.learner, config.rollout
    ranks = learner.num_ranks
    whole = Bundle("all learner ranks", round(ranks * learner.num_cpus, 4), ranks if learner.num_gpus else 0.0)
    if fits([whole], nodes):
        bundles, at = [whole], [0] * ranks
    else:
        bundles = [Bundle("a learner rank", learner.num_cpus, 1.0 if learner.num_gpus else 0.0)] * ranks
        at = list(range(ranks))
    places: dict[Role, list[int]] = {"learner": at}
    on_one = int(1.0 / rollout.num_gpus + 1e-6) if rollout.num_gpus else 1
    places["rollout"] = [len(bundles) + worker // on_one for worker in range(rollout.num_workers)]
    for first in range(0, rollout.num_workers, on_one):
        count = min(on_one, rollout.num_workers - first)
        holds = f"{count} rollout workers" if count > 1 else "a rollout worker"
        bundles.append(Bundle(holds, round(count * rollout.num_cpus, 4), 1.0 if rollout.num_gpus else 0.0))
    return Layout(bundles, True, places)
