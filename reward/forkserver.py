"""The warm process that a pool's workers are forked from: sympy is imported once, and a new worker costs milliseconds.

``python -m deltarl.reward.forkserver MEMORY_BYTES``, with the pool's socket as standard input. It has one thread and
never sees an answer, so that forking it is always sound. When the socket closes, however the pool's process ended, it
kills its workers and exits.
"""

import gc
import os
import resource
import signal
import socket
import sys
import traceback

from deltarl.reward import messages, worker


def main() -> None:
    """Fork and kill workers as commanded, until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pool's to handle
    # What the pool's process ignores or blocks is inherited.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the pool's end must be the only one but ours
    memory_bytes = int(sys.argv[1])
    worker.limit(resource.RLIMIT_CORE, 0)
    worker.limit(resource.RLIMIT_AS, memory_bytes)
    worker.warm_up()
    gc.freeze()  # a worker's collections need not touch, and so copy, what it shares with this process

    children: set[int] = set()
    while (command := messages.receive_command(control)) is not None:
        if isinstance(command, socket.socket):
            with command:
                try:
                    children.add(_fork(control, command, memory_bytes))
                except OSError:
                    traceback.print_exc()  # too many processes; the pool sees the connection end
        elif command in children:  # else it was another server's
            children.remove(command)
            _kill(command)
    for pid in children:
        _kill(pid)


def _fork(control: socket.socket, connection: socket.socket, memory_bytes: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            control.close()
            worker.serve(connection, memory_bytes)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    return pid


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)  # a child not waited for yet, so the number is still its own
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
