"""The process in which hostile answers meet sympy. Started by ``pool``; killed by it when an answer takes too long.

``python -m deltarl.reward.worker MEMORY_BYTES``: one JSON message in, one out, until standard input closes.
"""

import contextlib
import math
import os
import resource
import signal
import sys
import time
from typing import Any

from deltarl.reward import messages
from deltarl.reward.limits import ParseError
from deltarl.reward.parse import parse_answer
from deltarl.reward.verdict import VerdictKind


def main() -> None:
    """Serve requests ``{"pred", "gold", "timeout"}`` with replies ``{"kind", "detail", "decided_by"}``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a stray print must not corrupt the protocol
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, int(sys.argv[1]))

    from deltarl.reward.equivalence import judge  # slow: sympy

    def reply(message: dict[str, Any]) -> None:
        replies.write(messages.encode(message))
        replies.flush()

    reply({"ready": True})
    while (request := messages.read(requests)) is not None:
        # The parent's clock comes first. This one ends a busy worker whose parent was killed.
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + request["timeout"]) + 1)
        try:
            right, decided_by = judge(parse_answer(request["pred"]), parse_answer(request["gold"]))
            kind = VerdictKind.RIGHT if right else VerdictKind.WRONG
            reply({"kind": kind, "detail": "", "decided_by": decided_by})
        except ParseError as error:
            reply({"kind": VerdictKind.UNPARSABLE, "detail": str(error)})
        except Exception as error:
            # The type only: the message may hold a number whose conversion to text hangs.
            reply({"kind": VerdictKind.ERROR, "detail": type(error).__name__})


def _limit(what: int, soft: int) -> None:
    _, hard = resource.getrlimit(what)
    # Not every platform enforces every limit (macOS refuses RLIMIT_AS); the parent's clock holds regardless.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(what, (soft, hard))


if __name__ == "__main__":
    main()
