"""A run that goes on by itself from its last checkpoint, when a learner process died."""

import logging
from collections.abc import Callable

from deltarl.actor.host import StateLostError
from deltarl.rl.checkpoint import CheckpointStore
from deltarl.rl.faults import Faults

log = logging.getLogger(__name__)


def keep_running(attempt: Callable[[], None], store: CheckpointStore, faults: Faults, max_restarts: int) -> None:
    """Calls `attempt`, which takes the run from its newest checkpoint to its end, until it got there.

    Args:
        max_restarts: how many times in a row it may fail without having made a new checkpoint.

    Raises:
        StateLostError: it failed more often than that.
        Exception: whatever else `attempt` raised.
    """
    in_vain, before = 0, store.latest()
    while True:
        try:
            return attempt()
        except StateLostError as error:
            latest = store.latest()
            in_vain = in_vain + 1 if latest == before else 1
            before = latest
            if in_vain > max_restarts:
                raise
            faults.learner(str(error).splitlines()[0])
            log.warning(
                "a learner process died; going on by itself from %s (restart %d of at most %d without a new one)",
                *(latest.name if latest else "the beginning", in_vain, max_restarts),
            )
