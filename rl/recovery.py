"""A run that goes on by itself from its last checkpoint, when a learner process died."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from deltarl.actor.host import StateLostError
from deltarl.actor.placement import PlacementError
from deltarl.rl.faults import Faults

log = logging.getLogger(__name__)

RETRY_S, TELL_S = 5.0, 60.0  # between tries to place the run again, and between lines that say so


def keep_running(
    attempt: Callable[[], None], newest: Callable[[], Path | None], faults: Faults, max_restarts: int
) -> None:
    """Calls `attempt`, which takes the run from its newest checkpoint to its end, until it got there.

    Args:
        newest: the checkpoint it would go on from now, of RL or of the warm start; None at the beginning.
        max_restarts: how many times in a row it may fail without having made a new checkpoint.

    Raises:
        StateLostError: it failed more often than that.
        PlacementError: the cluster is too small from the beginning.
        Exception: whatever else `attempt` raised.
    """
    in_vain, before, waited = 0, newest(), 0.0
    while True:
        try:
            return attempt()
        except PlacementError as error:
            if not in_vain:
                raise
            # It had a place before: the node that the learner was lost with may be back, or another join.
            if waited % TELL_S == 0:
                log.warning("waited %.0f s for a node in the place of the one that was lost: %s", waited, error)
            time.sleep(RETRY_S)
            waited += RETRY_S
        except StateLostError as error:
            waited = 0.0
            latest = newest()
            in_vain = in_vain + 1 if latest == before else 1
            before = latest
            if in_vain > max_restarts:
                raise
            faults.learner(str(error).splitlines()[0])
            log.warning(
                "a learner process died; going on by itself from %s (restart %d of at most %d without a new one)",
                *(latest.name if latest else "the beginning", in_vain, max_restarts),
            )
