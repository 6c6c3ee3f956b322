"""A raylet in a network namespace of its own, whose link to the rest can be cut. Linux, and root."""

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

HERE, THERE = "10.201.77.1", "10.201.77.2"  # the two ends of the link
CUT_S = 10.0
SEES_S = 3.0  # in which a raylet that the cluster gave up for dead sees that and ends


class FarNode:
    """`HERE` is an address of this machine as soon as there is one; the raylet starts with `join`."""

    def __init__(self) -> None:
        """
        Raises:
            subprocess.CalledProcessError: not root, or no namespaces here.
        """
        self._name = f"chaos{os.getpid()}"
        self._near, far = f"near{os.getpid()}", f"far{os.getpid()}"
        self._raylet: subprocess.Popen[bytes] | None = None
        self._cut: threading.Timer | None = None
        inside = f"ip netns exec {self._name} ip"
        _do(f"ip netns add {self._name}")
        try:
            _do(f"ip link add {self._near} type veth peer name {far} netns {self._name}")
            _do(f"ip addr add {HERE}/30 dev {self._near}")
            _do(f"ip link set {self._near} up")
            _do(f"{inside} addr add {THERE}/30 dev {far}")
            _do(f"{inside} link set {far} up")
            _do(f"{inside} link set lo up")
        except subprocess.CalledProcessError:
            self.close()
            raise

    def join(self, address: str) -> None:
        """Starts a raylet there which joins this cluster, if there is none."""
        if self._raylet is not None and self._raylet.poll() is None:
            return
        ray = str(Path(sys.executable).parent / "ray")
        command = [ray, "start", f"--address={address}", f"--node-ip-address={THERE}", "--num-cpus=1", "--block"]
        self._raylet = subprocess.Popen(
            ["ip", "netns", "exec", self._name, *command, "--disable-usage-stats"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def processes(self) -> list[psutil.Process]:
        found = []
        for pid in _do(f"ip netns pids {self._name}").split():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def cut(self, address: str) -> None:
        """Nothing gets through for `CUT_S` seconds from now; then a raylet joins this cluster if that one has ended."""

        def mend() -> None:
            _do(f"ip link set {self._near} up")
            time.sleep(SEES_S)
            self.join(address)

        _do(f"ip link set {self._near} down")
        self._cut = threading.Timer(CUT_S, mend)
        self._cut.start()

    def wait(self) -> None:
        """Until the last cut is over."""
        if self._cut is not None:
            self._cut.join()

    def close(self) -> None:
        self.wait()
        if self._raylet is not None:
            self._raylet.terminate()
            self._raylet.wait()
        _do(f"ip netns del {self._name}")  # and the link with it


def _do(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout
