"""The process in which hostile answers meet sympy: forked by ``forkserver``, killed when an answer takes too long."""

import contextlib
import os
import resource
import signal
import socket
import sys
from typing import Any

from deltarl.reward import messages
from deltarl.reward.limits import ParseError
from deltarl.reward.parse import parse_answer
from deltarl.reward.verdict import VerdictKind


def warm_up() -> None:
    """Import sympy and judge something, so that what is loaded at first use is loaded before the fork."""
    _judge(r"2 \sin x \cos x", r"\sin 2x")


def serve(connection: socket.socket, memory_bytes: int) -> None:
    """Say ``{"pid"}``, then answer requests until ``connection`` closes.

    A request is ``{"pred", "gold", "timeout"}``, a reply ``{"kind", "detail"}`` with ``decided_by`` where something
    decided, and ``last`` after which no more is answered: memory that one item took must not be missing for the next.
    """
    limit(resource.RLIMIT_FSIZE, 0)  # there is nothing to write, ever
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it ends the process, unless the pool's process ignores it
    requests, replies = connection.makefile("rb"), connection.makefile("wb")

    def reply(message: dict[str, Any]) -> None:
        replies.write(messages.encode(message))
        replies.flush()

    with contextlib.suppress(ConnectionError):  # the pool is gone
        reply({"pid": os.getpid()})
        while (request := messages.read(requests)) is not None:
            # The kernel ends the process when its processor time is up: in the middle of whatever, and also where the
            # pool and the server were killed. A Python handler would wait for the current operation to end.
            signal.setitimer(signal.ITIMER_PROF, request["timeout"])
            verdict = _judge(request["pred"], request["gold"])
            last = _peak_bytes() > memory_bytes // 2
            reply({**verdict, "last": last})
            if last:
                return


def limit(what: int, soft: int) -> None:
    """Set a resource limit of this process, where the platform can: macOS refuses RLIMIT_AS."""
    _, hard = resource.getrlimit(what)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(what, (soft, hard))


def _judge(pred: str, gold: str) -> dict[str, Any]:
    from sympy.core.random import seed

    from deltarl.reward.equivalence import judge  # slow: sympy

    seed(0)  # whatever sympy draws at random: no verdict depends on the items before
    try:
        right, decided_by = judge(parse_answer(pred), parse_answer(gold))
        kind = VerdictKind.RIGHT if right else VerdictKind.WRONG
        return {"kind": kind, "detail": "", "decided_by": decided_by}
    except ParseError as error:
        return {"kind": VerdictKind.UNPARSABLE, "detail": str(error)}
    except Exception as error:
        # The type only: the message may hold a number whose conversion to text hangs.
        return {"kind": VerdictKind.ERROR, "detail": type(error).__name__}


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
