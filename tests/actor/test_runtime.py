"""Which Ray a run is in, who can reach it, and an address at which there is none."""

import os
import socket
import subprocess
import sys

import pytest
import ray

from deltarl.actor import runtime

RUN = """
import sys
import ray
from deltarl.actor import runtime
runtime.start(0.5, False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def test_two_runs_side_by_side_have_a_ray_of_their_own_and_join_the_one_they_are_told(ray_address: str) -> None:
    def start(**env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", RUN],
            env={name: x for name, x in os.environ.items() if name != "RAY_ADDRESS"} | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    runs = [start(), start(RAY_ADDRESS=ray_address)]
    own, told = (run.stdout.readline().strip() for run in runs if run.stdout is not None)
    for run in runs:
        run.communicate("")
        assert run.returncode == 0
    assert own
    assert own != ray_address
    assert told == ray_address


LISTENING = """
import psutil
import ray
from deltarl.actor import runtime
from deltarl.actor.gang import Gang
from deltarl.actor.host import WorkerSpec

class Rank:
    def meet(self):
        from deltarl.rl.ranks import rank_state
        return rank_state().num_processes

runtime.start(0.5, False)
assert Gang("ranks", WorkerSpec(Rank, num_cpus=0.1), 2).broadcast("meet") == [2, 2]
here = psutil.Process()
for process in [here, *here.children(recursive=True)]:
    for connection in process.net_connections("inet"):
        if connection.status == psutil.CONN_LISTEN:
            print(connection.laddr.ip, *process.cmdline()[:2])
"""


@pytest.mark.slow
def test_a_run_on_this_machine_listens_on_loopback_alone() -> None:
    env = {name: x for name, x in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", LISTENING], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    listeners = done.stdout.splitlines()
    assert len(listeners) > 8  # Ray's servers, its workers, and rank 0
    beyond = [x for x in listeners if x.split()[0].removeprefix("::ffff:") not in ("127.0.0.1", "::1")]
    assert beyond == []


def test_an_address_at_which_there_is_no_ray_is_refused_at_once(monkeypatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        with pytest.raises(ConnectionError, match=f"no Ray cluster answers at RAY_ADDRESS = {address}: start it"):
            runtime.start(0.5, False)
        # An address that `ray start` left behind is not what the user asked for.
        monkeypatch.delenv("RAY_ADDRESS")
        monkeypatch.setattr(runtime, "read_ray_address", lambda: address)
        asked = []
        monkeypatch.setattr(ray, "init", lambda **options: asked.append(options["address"]))
        monkeypatch.setattr(ray, "cluster_resources", dict)
        runtime.start(0.5, False)
        assert asked == ["local"]
