"""The machine that faults happen to: three raylets, a disk for checkpoints, and ways to break them."""

import functools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import psutil
from chaos_network import CUT_S, HERE, FarNode

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from ray.cluster_utils import Cluster  # reads the environment

WORKERS = {"sampler": "ray::RolloutWorker", "verifier": "ray::Scorer", "learner": "ray::Learner"}
DISK_MB = 24
MARK = "DELTARL_CHAOS"


class Machine:
    """A cluster of three raylets, and the folder of the run on it."""

    def __init__(self, run_dir: Path, flag: Path):
        """
        Args:
            flag: a file that makes the next verifier which sees it hang.
        """
        self._flag, self._disk = flag, run_dir / "checkpoints"
        self._filler, self._run_dir = self._disk / "filler", run_dir
        self._disk.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(self._disk)]
        self._has_disk = subprocess.run(mount, capture_output=True).returncode == 0
        # Ray notes there where the cluster is, and others' runs are not to join it. Paths of sockets must be short.
        self._ray = TemporaryDirectory(prefix="ray_", ignore_cleanup_errors=True)
        os.environ["RAY_TMPDIR"] = self._ray.name
        os.environ[MARK] = self._mark = uuid4().hex  # which all that the cluster starts inherits
        quick = {"worker_niceness": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}
        self._far = _far_node()
        # All raylets of this machine have the address that one in a namespace of its own reaches them by.
        self._near = {"num_cpus": 1} | ({"node_ip_address": HERE} if self._far else {})
        self._cluster = Cluster(initialize_head=True, head_node_args={**self._near, "_system_config": quick})
        self.address = self._cluster.address
        self._others = [self._cluster.add_node(**self._near) for _ in range(1 if self._far else 2)]
        if self._far:
            self._far.join(self.address)

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *unused: object) -> None:
        if self._far:
            self._far.close()
        self._cluster.shutdown()
        self._ray.cleanup()
        if self._has_disk:
            subprocess.run(["umount", str(self._disk)], check=True)

    def choose(self, rng: random.Random) -> tuple[str, Callable[[], None]]:
        """A fault by name, and what makes it happen; each kind is as likely as any other."""
        faults: dict[str, Callable[[], None]] = {}
        for who, title in WORKERS.items():
            for how, number in (("kill -9", signal.SIGKILL), ("SIGSTOP", signal.SIGSTOP)):
                faults[f"{how} of a {who}"] = functools.partial(self._signal, title, number, rng)
        faults["kill -9 of a raylet, another joins"] = functools.partial(self._lose_node, rng)
        faults["a verifier hangs"] = self._flag.touch
        if self._has_disk:
            faults["disk full for a checkpoint"] = self._fill
        if self._far:
            faults[f"network cut for {CUT_S:g} s"] = functools.partial(self._cut, self._far)
        name = rng.choice(list(faults))
        return name, faults[name]

    def mend(self) -> None:
        """Room on the disk again, no verifier to hang any more, and the network there."""
        self._filler.unlink(missing_ok=True)
        self._flag.unlink(missing_ok=True)
        if self._far:
            self._far.wait()

    def processes(self) -> list[psutil.Process]:
        """All that the cluster and the run started and that is still there."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self._mark and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def litter(self) -> list[Path]:
        """Files that something left half done."""
        return [f for f in self._run_dir.rglob("*") if f.name.startswith(".partial_") or f.name.endswith(".tmp")]

    def _signal(self, title: str, number: signal.Signals, rng: random.Random) -> None:
        found = self._wait_for_workers((title,), self.processes)
        rng.choice(sorted(found, key=lambda p: p.pid)).send_signal(number)

    def _cut(self, far: FarNode) -> None:
        self._wait_for_workers(tuple(WORKERS.values()), far.processes)
        far.cut(self.address)

    @staticmethod
    def _wait_for_workers(
        titles: tuple[str, ...], processes: Callable[[], list[psutil.Process]]
    ) -> list[psutil.Process]:
        """Those of these titles; a node may have just gone."""
        deadline = time.monotonic() + 60
        while not (found := [p for p in processes() if _title(p).startswith(titles)]):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no process {' or '.join(titles)}")
            time.sleep(0.1)
        return found

    def _lose_node(self, rng: random.Random) -> None:
        node = self._others.pop(rng.randrange(len(self._others)))
        self._cluster.remove_node(node, allow_graceful=False)
        self._others.append(self._cluster.add_node(**self._near))

    def _fill(self) -> None:
        with self._filler.open("wb") as file:
            try:
                while True:
                    file.write(b"x" * 65536)
                    file.flush()
            except OSError:
                return


def _far_node() -> FarNode | None:
    try:
        return FarNode()
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
