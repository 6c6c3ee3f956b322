"""Isolation: a slow, killed or crashing worker costs its own item and nothing else."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deltarl.reward.pool import WorkerPool, WorkerStartError
from deltarl.reward.verdict import VerdictKind

# Equal, but only by expanding seven variables to the twentieth power.
SLOW = (r"((x+y+z+t)^2+2(x+y+z+t)(w+a+b)+(w+a+b)^2)^{10}", "(x+y+z+t+w+a+b)^{20}")
EASY = (r"2 \sin x \cos x", r"\sin 2x")


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(timeout=1.0) as pool:
        yield pool


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_judges(pool: WorkerPool) -> None:
    assert pool.judge(*EASY).kind is VerdictKind.RIGHT
    assert pool.judge("x", r"\sin 2x").kind is VerdictKind.WRONG
    assert pool.judge("(", "1").kind is VerdictKind.UNPARSABLE


def test_timeout_is_counted_and_the_next_item_is_judged(pool: WorkerPool) -> None:
    outcome = pool.judge(*SLOW)
    assert outcome.kind is VerdictKind.TIMEOUT
    assert outcome.seconds >= 1.0
    assert pool.judge(*EASY).kind is VerdictKind.RIGHT


def test_killed_worker_costs_one_item() -> None:
    with WorkerPool(timeout=60.0) as pool, ThreadPoolExecutor(1) as thread:
        assert pool.judge(*EASY).kind is VerdictKind.RIGHT
        slow = thread.submit(pool.judge, *SLOW)
        time.sleep(0.3)
        for pid in pool.pids():  # the busy one and the spare
            os.kill(pid, signal.SIGKILL)
        assert slow.result().kind is VerdictKind.ERROR
        time.sleep(0.1)
        assert pool.judge(*EASY).kind is VerdictKind.RIGHT


def test_worker_killed_while_idle_costs_nothing(pool: WorkerPool) -> None:
    pool.judge(*EASY)
    for pid in pool.pids():
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert pool.judge(*EASY).kind is VerdictKind.RIGHT


def test_waiting_for_a_worker_is_not_on_the_clock() -> None:
    # Four items of 0.5 s or more on one worker: the last waits longer than its own timeout.
    with WorkerPool(timeout=0.5) as pool, ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(lambda pair: pool.judge(*pair), [SLOW, SLOW, SLOW, EASY]))
    assert [outcome.kind for outcome in outcomes] == [VerdictKind.TIMEOUT] * 3 + [VerdictKind.RIGHT]


def test_many_threads_share_few_workers() -> None:
    pairs = [(f"{n} x + x", f"{n + 1} x") for n in range(20)] + [(f"{n} x + y", f"{n + 1} x") for n in range(20)]
    with WorkerPool(timeout=10.0, num_workers=2) as pool, ThreadPoolExecutor(8) as threads:
        kinds = [outcome.kind for outcome in threads.map(lambda pair: pool.judge(*pair), pairs)]
    assert kinds == [VerdictKind.RIGHT] * 20 + [VerdictKind.WRONG] * 20


def test_asyncio_to_thread(pool: WorkerPool) -> None:
    async def judge_both() -> list[VerdictKind]:
        outcomes = await asyncio.gather(*(asyncio.to_thread(pool.judge, *EASY) for _ in range(2)))
        return [outcome.kind for outcome in outcomes]

    assert asyncio.run(judge_both()) == [VerdictKind.RIGHT] * 2


def test_close_ends_busy_items_and_all_processes() -> None:
    pool = WorkerPool(timeout=60.0)
    with ThreadPoolExecutor(1) as thread:
        pool.judge(*EASY)
        pids = pool.pids()
        slow = thread.submit(pool.judge, *SLOW)
        time.sleep(0.3)
        pool.close()
        assert slow.result().kind is VerdictKind.ERROR
    assert len(pids) == 2
    assert not any(map(_running, pids))
    with pytest.raises(RuntimeError, match="closed"):
        pool.judge(*EASY)
    pool.close()


def test_memory_limit_too_small_to_start_is_a_clear_error() -> None:
    with WorkerPool(timeout=1.0, memory_bytes=32 << 20) as pool, pytest.raises(WorkerStartError, match="32 MiB"):
        pool.judge(*EASY)


def test_works_from_a_script_without_main_guard_and_leaves_no_orphans(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('imported')\n"
        "from deltarl.reward.pool import WorkerPool\n"
        "pool = WorkerPool(timeout=10.0)\n"
        f"print(pool.judge(*{EASY!r}).kind, *pool.pids())\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n",
    )
    # A module of the working directory must not reach the worker.
    (tmp_path / "sympy.py").write_text("raise RuntimeError('the wrong sympy')\n")
    run = subprocess.run(
        [sys.executable, "-P", "-u", str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    first, second = run.stdout.splitlines()
    kind, *pids = second.split()
    assert (first, kind) == ("imported", "right")
    deadline = time.monotonic() + 10
    while any(_running(int(pid)) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_running(int(pid)) for pid in pids)


def test_interrupted_judge_does_not_leave_its_reply_to_the_next(pool: WorkerPool) -> None:
    pool.judge(*EASY)
    timer = threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        pool.judge(*SLOW)
    assert pool.judge(*EASY).kind is VerdictKind.RIGHT
