"""A run without Ray: its workers and its learner are plain objects of this process, one after the other at work.

For a debugger or a notebook, and to tell what Ray costs. The curve is the one of the same run under Ray.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deltarl.reward.rewards import Scorer
from deltarl.rl.config import RunConfig
from deltarl.rl.learner import Learner
from deltarl.rollout.worker import RolloutWorker


class InProcess:
    """One object in the place of `size` workers of a fleet or of the only rank of a gang."""

    restarts = 0

    def __init__(self, worker: Any, size: int = 1):
        self.worker, self._size = worker, size

    def __len__(self) -> int:
        return self._size

    def map(self, method: str, items: Sequence[tuple[Any, ...]]) -> list[Any]:
        """`worker.method(*item)` for every item."""
        return [getattr(self.worker, method)(*item) for item in items]

    scatter = map

    def broadcast(self, method: str, *args: Any) -> list[Any]:
        """`worker.method(*args)`, once."""
        return [self.first(method, *args)]

    def first(self, method: str, *args: Any) -> Any:
        """What `worker.method(*args)` returns."""
        return getattr(self.worker, method)(*args)

    def close(self) -> None:
        """Ends what the worker started."""
        if hasattr(self.worker, "close"):
            self.worker.close()


def workers(config: RunConfig, model_path: Path, scorer_arguments: dict[str, Any]) -> tuple[InProcess, ...]:
    """Who samples, who scores and who learns."""
    rollout, learner = config.rollout, config.learner
    torch.set_num_threads(learner.num_threads)
    options: dict[str, Any] = {"backend": rollout.backend, "batch_invariant": learner.batch_invariant}
    sampler = RolloutWorker(str(model_path), max_num_seqs=rollout.max_num_seqs, **options)
    updates = config.steps * learner.num_minibatches
    return (
        InProcess(sampler, rollout.num_workers),
        InProcess(Scorer(**scorer_arguments), config.reward.num_workers),
        InProcess(Learner(learner, str(model_path), updates, rollout.temperature, rollout.max_tokens)),
    )
