"""Batches sampled ahead of the learner, on a schedule that does not depend on how long anything takes."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import ParamSpec, TypeVar

from deltarl.rl.collected import Collected, load_batches, save_batches
from deltarl.rl.data import EncodedPrompt
from deltarl.rl.in_order import InOrder
from deltarl.rl.timeline import of_step

P = ParamSpec("P")
T = TypeVar("T")


class Ahead:
    """Has the batch of step s sampled by version max(0, s - 1 - max_staleness) of the weights, whoever is faster.

    The learner makes version s of batch s, whose tokens are therefore min(s - 1, max_staleness) versions old. In the
    meantime batches up to s + max_staleness are sampled, and no further ones: their weights do not exist yet. With
    `rollout.in_flight` a batch begins with that version or a newer one, and may end with a newer one still.

    All that the samplers and the scorers do is done in the order in which it is asked for: batches, new weights and
    evaluations, each of which thus meets the weights it should.
    """

    def __init__(self, collect: Callable[[int], Collected], max_staleness: int, last_step: int, in_thread: bool):
        """
        Args:
            collect: samples and scores the batch of a step.
            in_thread: work while the learner does; otherwise each thing is done when it is asked for.
        """
        self._collect, self._max_staleness, self._last_step = collect, max_staleness, last_step
        self._in_order = InOrder("sampling", in_thread)
        self._batches: deque[Future[Collected]] = deque()
        self._asked = 0  # for the batches up to this step

    def do(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Has `call` done after all that was asked for before; what comes after meets what it left."""
        return self._in_order.do(call, *args, **kwargs)

    def take(self, step: int) -> Collected:
        """The batch of `step`; to be called once for each, when the weights of the step before have been asked for.

        Raises:
            RuntimeError: it has tokens that are older than `max_staleness` versions.
            Exception: whatever sampling or scoring raised.
        """
        while self._asked < min(step + self._max_staleness, self._last_step):
            self._asked += 1
            self._batches.append(self.do(self._timed, self._asked))
        batch = self._batches[0].result()
        self._batches.popleft()
        oldest = min(v for group in batch.episodes.groups for t in group.outputs for v in t.weight_versions)
        if oldest < step - 1 - self._max_staleness:
            raise RuntimeError(
                f"step {step} would learn from tokens of weights version {oldest}, older than rollout.max_staleness = "
                f"{self._max_staleness} allows: the samplers do not have the weights they should"
            )
        return batch

    def save(self, folder: Path) -> None:
        """Waits for all that was asked for, and writes the batches that were sampled and not taken, if there are any.

        Where sampling failed, they end there.
        """
        ready = []
        for batch in self._batches:
            try:
                ready.append(batch.result())
            except Exception:
                break  # `take` will raise it
        if ready:
            save_batches(ready, folder)

    def load(self, folder: Path, step: int, problems: Sequence[EncodedPrompt]) -> None:
        """Goes on after `step`, with what `save` wrote.

        Batches missing there, because sampling had failed, will be sampled by the newest weights.
        """
        self._asked = step
        for batch in load_batches(folder, problems):
            self._asked += 1
            self._batches.append(Future())
            self._batches[-1].set_result(batch)

    def close(self) -> None:
        """Ends the thread when what it is at is done."""
        self._in_order.close()

    def _timed(self, step: int) -> Collected:
        idle = self._in_order.idle()
        with of_step(step):
            batch = self._collect(step)
        batch.seconds["wait_learner"] = idle
        return batch
