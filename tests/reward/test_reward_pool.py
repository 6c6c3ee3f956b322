"""Isolation: a slow, killed or crashing worker costs its own item and nothing else."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deltarl.reward.pool import STARVATION, WorkerPool
from deltarl.reward.processes import WorkerStartError
from deltarl.reward.verdict import VerdictKind
from deltarl.reward.verifier import Verifier

# Equal, but only by expanding seven variables to the twentieth power.
SLOW = (r"((x+y+z+t)^2+2(x+y+z+t)(w+a+b)+(w+a+b)^2)^{10}", "(x+y+z+t+w+a+b)^{20}")
EASY = (r"2 \sin x \cos x", r"\sin 2x")


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(timeout=1.0) as pool:
        yield pool


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _end(pids: Iterable[int], within: float = 10.0) -> bool:
    """Whether the processes all end within so many seconds."""
    deadline = time.monotonic() + within
    while any(map(_running, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert _end(pids)


def _kill_one(pool: WorkerPool, rng: random.Random) -> bool:
    """Kill a worker, whatever it does; whether there was one."""
    workers = pool.pids()[1:]
    with contextlib.suppress(IndexError, ProcessLookupError):
        os.kill(rng.choice(workers), signal.SIGKILL)
        return True
    return False


def _run(script: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    (cwd / "script.py").write_text(script)
    command = [sys.executable, "-P", "-u", "script.py"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_judges(pool: WorkerPool) -> None:
    assert pool.judge(*EASY).kind is VerdictKind.RIGHT
    assert pool.judge("x", r"\sin 2x").kind is VerdictKind.WRONG
    assert pool.judge("(", "1").kind is VerdictKind.UNPARSABLE


def test_timeout_is_counted_and_the_next_item_is_judged(pool: WorkerPool) -> None:
    outcome = pool.judge(*SLOW)
    assert outcome.kind is VerdictKind.TIMEOUT
    assert outcome.seconds >= 1.0
    assert pool.judge(*EASY).kind is VerdictKind.RIGHT


def test_a_worker_that_is_held_up_has_its_time_all_the_same() -> None:
    with WorkerPool(timeout=0.5) as pool, ThreadPoolExecutor(1) as thread:
        pool.judge(*EASY)
        _, worker = pool.pids()
        os.kill(worker, signal.SIGSTOP)
        held_up = thread.submit(pool.judge, *EASY)
        time.sleep(1.0)
        os.kill(worker, signal.SIGCONT)
        assert held_up.result().kind is VerdictKind.RIGHT
        os.kill(worker, signal.SIGSTOP)
        outcome = pool.judge(*EASY)  # but is not waited for for ever
        assert outcome.kind is VerdictKind.TIMEOUT
        assert 0.5 * STARVATION <= outcome.seconds < 0.5 * STARVATION + 1.0
        assert pool.judge(*EASY).kind is VerdictKind.RIGHT


def test_killed_worker_costs_one_item() -> None:
    with WorkerPool(timeout=60.0) as pool, ThreadPoolExecutor(1) as thread:
        assert pool.judge(*EASY).kind is VerdictKind.RIGHT
        slow = thread.submit(pool.judge, *SLOW)
        time.sleep(0.3)
        _kill(*pool.pids()[1:])
        assert slow.result().kind is VerdictKind.ERROR
        assert pool.judge(*EASY).kind is VerdictKind.RIGHT


def test_worker_killed_while_idle_costs_nothing(pool: WorkerPool) -> None:
    pool.judge(*EASY)
    _, worker = pool.pids()
    _kill(worker)
    assert pool.judge(*EASY).kind is VerdictKind.RIGHT


def test_a_killed_server_is_replaced(pool: WorkerPool) -> None:
    pool.judge(*EASY)
    _kill(*pool.pids())
    assert pool.judge(*EASY).kind is VerdictKind.RIGHT
    server, worker = pool.pids()
    _kill(server)
    assert pool.judge(*EASY).kind is VerdictKind.RIGHT  # its worker lives on
    assert pool.judge(*SLOW).kind is VerdictKind.TIMEOUT
    assert pool.judge(*EASY).kind is VerdictKind.RIGHT
    assert _end([worker], within=60.0)  # nothing killed it: its processor time was up


def test_every_item_has_one_outcome_while_workers_are_killed_at_random() -> None:
    pairs = [(f"{n} x + x", f"{n + 1 + n % 2} x") for n in range(400)]  # every second one is right
    rng = random.Random(5)
    with WorkerPool(timeout=30.0, num_workers=3) as pool, ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(pool.judge, *pair) for pair in pairs]
        kills = 0
        while not all(future.done() for future in futures):
            kills += _kill_one(pool, rng)
            time.sleep(rng.uniform(0.005, 0.03))
        outcomes = [future.result() for future in futures]
        assert pool.judge(*EASY).kind is VerdictKind.RIGHT
    expected = [VerdictKind.WRONG if n % 2 else VerdictKind.RIGHT for n in range(400)]
    lost = sum(outcome.kind is VerdictKind.ERROR for outcome in outcomes)
    assert all(o.kind in (kind, VerdictKind.ERROR) for o, kind in zip(outcomes, expected, strict=True))
    assert 0 < lost <= kills


def test_every_sample_has_one_verdict_while_workers_are_killed_under_eight_threads() -> None:
    batches = [[rf"{2 * k}\sin x \cos x" for k in range(n, n + 6)] for n in range(1, 49, 6)]
    golds = [[rf"{k}\sin 2x" for k in range(n, n + 6)] for n in range(1, 49, 6)]
    boxes = [[rf"\boxed{{{answer}}}" for answer in batch] for batch in batches]
    rng = random.Random(6)
    with Verifier(timeout=30.0, num_workers=2) as verifier, ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(verifier.score, *batch) for batch in zip(boxes, golds, strict=True)]
        while not all(future.done() for future in futures):
            _kill_one(verifier.pool, rng)
            time.sleep(rng.uniform(0.02, 0.1))
        found = [future.result() for future in futures]
        again = [verifier.score(*batch) for batch in zip(boxes, golds, strict=True)]  # what was lost is not remembered
    for batch, answers in zip(found, batches, strict=True):
        assert [verdict.extracted for verdict in batch] == answers
        assert {verdict.kind for verdict in batch} <= {VerdictKind.RIGHT, VerdictKind.ERROR}
    assert any(verdict.kind is VerdictKind.ERROR for batch in found for verdict in batch)
    assert all(verdict.correct for batch in again for verdict in batch)


def test_out_of_memory_costs_one_item() -> None:
    with WorkerPool(timeout=60.0, memory_bytes=100 << 20) as pool:
        outcome = pool.judge(*SLOW)
        assert (outcome.kind, outcome.detail) == (VerdictKind.ERROR, "MemoryError")
        assert len(pool.pids()) == 1  # the worker is gone: what it still holds would be missing for the next
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


def test_close_ends_busy_items_and_leaves_nothing() -> None:
    fds = len(os.listdir("/proc/self/fd"))
    pool = WorkerPool(timeout=60.0, num_workers=2)
    with ThreadPoolExecutor(2) as threads:
        assert [o.kind for o in threads.map(lambda pair: pool.judge(*pair), [EASY] * 2)] == [VerdictKind.RIGHT] * 2
        pids = pool.pids()
        slow = threads.submit(pool.judge, *SLOW)
        time.sleep(0.3)
        pool.close()
        assert slow.result().kind is VerdictKind.ERROR
    assert len(pids) == 3
    assert not any(map(_running, pids))
    assert len(os.listdir("/proc/self/fd")) == fds
    with pytest.raises(RuntimeError, match="closed"):
        pool.judge(*EASY)
    pool.close()


def test_a_forgotten_pool_leaves_nothing() -> None:
    pool = WorkerPool(timeout=10.0)
    pool.judge(*EASY)
    pids = pool.pids()
    del pool
    assert _end(pids)


def test_memory_limit_too_small_to_start_is_a_clear_error() -> None:
    with WorkerPool(timeout=1.0, memory_bytes=32 << 20) as pool, pytest.raises(WorkerStartError, match="32 MiB"):
        pool.judge(*EASY)


@pytest.mark.parametrize("end", ["sys.exit()", "os._exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_works_from_a_script_without_main_guard_and_leaves_no_orphans(tmp_path: Path, end: str) -> None:
    # A module of the working directory must not reach the worker.
    (tmp_path / "sympy.py").write_text("raise RuntimeError('the wrong sympy')\n")
    run = _run(
        "import os, signal, sys, threading, time\n"
        "print('imported')\n"
        "from deltarl.reward.pool import STARVATION, WorkerPool\n"
        "pool = WorkerPool(timeout=30.0, num_workers=2)\n"
        f"print(pool.judge(*{EASY!r}).kind)\n"
        f"threading.Thread(target=pool.judge, args={SLOW!r}, daemon=True).start()\n"
        "time.sleep(0.3)\n"
        f"pool.judge(*{EASY!r})\n"
        "print(*pool.pids())\n"
        f"{end}\n",
        tmp_path,
    )
    first, kind, pids = run.stdout.splitlines()
    assert (first, kind, run.stderr) == ("imported", "right", "")
    assert len(pids.split()) == 3  # the server, a busy worker and an idle one
    assert _end(map(int, pids.split()))


def test_works_where_the_caller_ignores_and_blocks_signals(tmp_path: Path) -> None:
    run = _run(
        "import signal\n"
        "from deltarl.reward.pool import STARVATION, WorkerPool\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())\n"
        "with WorkerPool(timeout=1.0) as pool:\n"
        f"    print(*(pool.judge(*pair).kind for pair in {[EASY, SLOW, EASY, SLOW, EASY]!r}))\n",
        tmp_path,
    )
    assert run.stderr == ""
    assert run.stdout.split() == ["right", "timeout", "right", "timeout", "right"]


def test_a_fork_of_the_caller_judges_with_processes_of_its_own(tmp_path: Path) -> None:
    run = _run(
        "import os, threading, time\n"
        "from deltarl.reward.pool import STARVATION, WorkerPool\n"
        "pool = WorkerPool(timeout=30.0)\n"
        f"easy, slow = {EASY!r}, {SLOW!r}\n"
        "assert pool.judge(*easy).kind == 'right'\n"
        "before = pool.pids()\n"
        "busy = threading.Thread(target=pool.judge, args=slow, daemon=True)\n"
        "busy.start()\n"
        "time.sleep(0.3)\n"
        "if (child := os.fork()) == 0:\n"  # the only slot is taken by a thread that the fork has not got
        "    assert pool.judge(*easy).kind == 'right'\n"
        "    assert not set(pool.pids()) & set(before)\n"
        "    print('child', *pool.pids(), flush=True)\n"
        "    pool.close()\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert busy.is_alive() and pool.pids() == before\n"
        "if os.fork() == 0:\n"  # a child that outlives us must not keep our workers alive
        "    os.close(1), os.close(2)\n"
        "    time.sleep(15)\n"
        "    os._exit(0)\n"
        "print('parent', *before, flush=True)\n"
        "os.kill(os.getpid(), 9)\n",
        tmp_path,
    )
    assert run.stderr == ""
    child, parent = (line.split()[1:] for line in run.stdout.splitlines())
    assert _end(map(int, child + parent), within=8.0)


@pytest.mark.slow
def test_ray_actor() -> None:
    ray = pytest.importorskip("ray")

    class Judge:
        def __init__(self) -> None:
            self.pool = WorkerPool(timeout=30.0)

        def judge(self, pred: str, gold: str) -> str:
            return self.pool.judge(pred, gold).kind

        def pids(self) -> list[int]:
            return self.pool.pids()

    class AsyncJudge(Judge):
        async def judge(self, pred: str, gold: str) -> str:  # type: ignore[override]  # as an async actor has it
            return await asyncio.to_thread(super().judge, pred, gold)

    started = not ray.is_initialized()  # other tests leave theirs running
    if started:
        ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    try:
        for judge in (Judge, AsyncJudge):
            actor = ray.remote(judge).options(num_cpus=0.1).remote()
            assert ray.get([actor.judge.remote(*EASY) for _ in range(4)]) == ["right"] * 4
            pids = ray.get(actor.pids.remote())
            assert len(pids) == 2
            ray.kill(actor)
            assert _end(pids)
    finally:
        if started:
            ray.shutdown()


def test_interrupted_judge_does_not_leave_its_reply_to_the_next(pool: WorkerPool) -> None:
    pool.judge(*EASY)
    timer = threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pool.judge(*SLOW)
    finally:
        signal.signal(signal.SIGINT, before)
    assert pool.judge(*EASY).kind is VerdictKind.RIGHT
