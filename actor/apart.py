"""Work that kills whoever does it: found by trying its parts, and left out of what is done."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ray.exceptions import RayTaskError

from deltarl.actor.fleet import KILLER
from deltarl.actor.host import WorkerLostError

log = logging.getLogger(__name__)

DEATHS = 2  # workers that an item of work may kill before it is taken apart, and a unit alone before it is set aside

Item = Callable[[Sequence[int]], tuple[Any, ...]]
"""The arguments of the method for these units of work."""


class Attempts(Protocol):
    """What is needed of a fleet; `Fleet` is one."""

    def attempt(self, method: str, items: Sequence[tuple[Any, ...]], max_deaths: int) -> list[Any]: ...


def map_apart(
    fleet: Attempts, method: str, shares: Sequence[Sequence[int]], item: Item
) -> tuple[list[Any], dict[int, None]]:
    """The result of each share of units of work, done without the units that kill workers; and these, in order.

    The parts of a share are tried to find out who is at fault, and their results thrown away: what is returned is that
    of the rest in one piece, which is the same however the search went.

    Returns:
        Results, None for a share that was at fault as a whole; and the units set aside.

    Raises:
        WorkerLostError: each of several units would be set aside, or none alone kills and all together do: then the
            fault is not theirs.
    """
    results = fleet.attempt(method, [item(share) for share in shares], DEATHS)
    aside: dict[int, None] = {}
    for i, share in enumerate(shares):
        if results[i] is not KILLER:
            continue
        log.warning("%s of %d items together killed %d workers; looking for those at fault", method, len(share), DEATHS)
        aside |= dict.fromkeys(_at_fault(fleet, method, share, item))
        kept = [unit for unit in share if unit not in aside]
        results[i] = fleet.attempt(method, [item(kept)], DEATHS)[0] if kept else None
        if results[i] is KILLER:
            raise WorkerLostError(
                f"{method} of {len(kept)} items together kills workers, and none of them does alone: they may want "
                "more memory than there is; ask for less at once"
            )
    total = sum(len(share) for share in shares)
    if len(aside) == total > 1:
        raise WorkerLostError(f"each of the {total} items of {method} killed {DEATHS} workers: it is not their fault")
    return results, aside


def _at_fault(fleet: Attempts, method: str, share: Sequence[int], item: Item) -> list[int]:
    """By halves: a part that kills a worker is looked at more closely, a unit alone must do it `DEATHS` times."""
    found: list[int] = []
    suspects = deque([share])
    while suspects:
        part = suspects.popleft()
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]) if middle else (part,):
            if _kills(fleet, method, item(half), DEATHS if len(half) == 1 else 1):
                if len(half) == 1:
                    found.extend(half)
                else:
                    suspects.append(half)
    return found


def _kills(fleet: Attempts, method: str, arguments: tuple[Any, ...], times: int) -> bool:
    try:
        return fleet.attempt(method, [arguments], times)[0] is KILLER
    except RayTaskError:  # what it says to a part is no matter: it said it alive
        return False
