"""All runs under a folder, kept up to date: a quick look at each first, then the whole of it, then what is appended."""

import asyncio
import logging
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from deltarl.rl.dashboard.columns import Columns, joined, load, parse_rows, peek
from deltarl.rl.dashboard.runs import Run, find_runs, inside
from deltarl.rl.dashboard.tail import read_new

log = logging.getLogger(__name__)

SMALL = 256 * 2**10
"""Bytes that are parsed on the spot; more goes to another process, which leaves the server free to answer."""
PEEK_ROWS = 6_000
"""Rows that a first look reads, over all runs together: about a third of a second."""
RESCAN_S = 5.0
"""Looking for new folders costs more than looking at known files."""
REFRESH_S = 0.5


class RunIndex:
    """The runs under `root`, by id: the path of their folder relative to it.

    Nothing is ever opened by a path that a request brings; requests name runs by id.
    """

    def __init__(self, root: Path):
        self.root = root.resolve()
        self.runs: dict[str, Run] = {}
        self.version = 0
        self._refreshed = self._scanned = -1e9
        self._lock = asyncio.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._loads: dict[str, asyncio.Task[None]] = {}

    async def refresh(self) -> None:
        """Takes in what was written since; does nothing when that was asked a moment ago."""
        async with self._lock:
            if time.monotonic() - self._refreshed < REFRESH_S:
                return
            await asyncio.to_thread(self._refresh)
            self._refreshed = time.monotonic()
            for run in self.runs.values():
                if not run.complete and run.id not in self._loads:
                    self._loads[run.id] = asyncio.create_task(self._load(run))

    def changed_since(self, version: int) -> list[Run]:
        """Runs with news for someone who has seen everything up to `version`."""
        return [run for run in self.runs.values() if run.version > version]

    async def close(self) -> None:
        """Ends the reading that is under way."""
        for task in self._loads.values():
            task.cancel()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _refresh(self) -> None:
        if time.monotonic() - self._scanned > RESCAN_S:
            self._scan()
            self._scanned = time.monotonic()
        fresh = sum(1 for run in self.runs.values() if not run.version)
        for run in list(self.runs.values()):
            try:
                self._update(run, PEEK_ROWS // max(fresh, 1))
            except OSError as error:  # deleted or not readable; the next scan tells
                log.debug("%s: %s", run.metrics_file, error)

    def _scan(self) -> None:
        found = {_id(self.root, folder): folder for folder in find_runs(self.root)}
        for name in self.runs.keys() - found.keys():
            del self.runs[name]
            self.version += 1
        for name in found.keys() - self.runs.keys():
            self.runs[name] = Run(name, found[name])
        self.runs = {name: self.runs[name] for name in found if name in self.runs}

    def _update(self, run: Run, peek_rows: int) -> None:
        status = run.metrics_file.stat()
        run.read_config(self.root)
        if inside(self.root, run.metrics_file) is None:
            raise FileNotFoundError(f"{run.metrics_file} is no longer a file of this folder")
        if not run.complete:
            if status.st_size > SMALL and not run.version:
                run.columns = peek(run.metrics_file, min(max(peek_rows, 60), 400))
            elif status.st_size <= SMALL:
                run.columns, run.tail = load(run.metrics_file)
                run.complete = True
            if not run.version or run.complete:
                self._bump(run, status.st_mtime)
        elif (status.st_size, status.st_ino) != (run.tail.offset, run.tail.inode):
            self._append(run, status.st_mtime)
        if run.state() != run.shown:  # also by the time that passed
            self._bump(run, status.st_mtime)

    def _append(self, run: Run, written: float) -> None:
        new = read_new(run.metrics_file, run.tail)
        if not new.restarted and new.tail == run.tail:
            return
        before = Columns() if new.restarted else run.columns
        run.columns, run.tail = joined(before, parse_rows(new.data.split(b"\n"))), new.tail
        self._bump(run, written)

    async def _load(self, run: Run) -> None:
        if self._pool is None:
            # Spawned, because a fork of a process with threads may hang.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(max(1, min(4, (os.cpu_count() or 2) - 1)), context)
        loop = asyncio.get_running_loop()
        try:
            columns, tail = await loop.run_in_executor(self._pool, load, run.metrics_file)
        except OSError as error:
            log.warning("%s cannot be read: %s", run.metrics_file, error)
            del self._loads[run.id]  # the next look tries again
            return
        async with self._lock:
            run.columns, run.tail, run.complete = columns, tail, True
            self._bump(run, run.written)
            del self._loads[run.id]

    def _bump(self, run: Run, written: float) -> None:
        self.version += 1
        run.version, run.written = self.version, written
        run.shown = run.state()


def _id(root: Path, folder: Path) -> str:
    name = folder.relative_to(root).as_posix()
    return root.name if name == "." else name
