"""`ray job submit` to a cluster of the test's own, `ray job stop`, and the same submission again."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from deltarl.rl.jsonl import read_jsonl
from deltarl.rl.metrics import read_curve

ROOT = Path(__file__).parents[2]
# Seconds from SIGTERM to SIGKILL, for a busy machine; Ray has 3.
GRACE = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}
ENDED = {JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED}


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture
def client(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobSubmissionClient]:
    """Of a head with its own ports and its own folder, which ends with its processes and touches no other Ray."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    gcs, dashboard, client_server, agent, agent_grpc, metrics = free_ports(6)
    folder = Path("/tmp") / f"ray-job-{os.getpid()}"  # short: sockets in it have a longest name
    options = {
        "port": gcs,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "ray-client-server-port": client_server,
        "dashboard-agent-listen-port": agent,
        "dashboard-agent-grpc-port": agent_grpc,
        "metrics-export-port": metrics,
        "temp-dir": folder,
        "num-cpus": 4,  # room for two jobs
    }
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    env = {name: x for name, x in os.environ.items() if name != "RAY_ADDRESS"}
    head = subprocess.Popen([*command, *(f"--{name}={x}" for name, x in options.items())], env=env)
    try:
        yield wait(lambda: connect(f"http://127.0.0.1:{dashboard}"), "the head")
    finally:
        family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in family:
            process.kill()
        psutil.wait_procs(family, timeout=20)
        subprocess.run(["rm", "-rf", folder], check=False)


def connect(address: str) -> JobSubmissionClient | None:
    try:
        return JobSubmissionClient(address)
    except ConnectionError:
        return None


def wait(found: Callable[[], Any], what: str, seconds: float = 300.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.5)
    return result


def submit(client: JobSubmissionClient, entrypoint: str) -> str:
    """As `--working-dir .`; without what git does not hold, to be quick."""
    hidden = [path.name for path in ROOT.glob(".*")]
    files = {"working_dir": str(ROOT), "excludes": [*hidden, "/runs", "/benchmarks", "/data"]} | GRACE

    def found() -> str | None:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env=files)
        except RuntimeError as error:
            if "No available agent" not in str(error):  # the head answers before all of it is there
                raise
            return None

    return wait(found, "the head to take a job")


def command(folder: Path, name: str, steps: int) -> str:
    return (
        f"{sys.executable} rl/run_grpo.py --config tests/rl/tiny.yaml output_dir={folder} name={name} steps={steps} "
        "checkpoint.interval=2 eval.interval=1000 logging.wandb=disabled"
    )


def steps_done(run_dir: Path) -> int:
    file = run_dir / "metrics.jsonl"
    return len(read_jsonl(file)) - 1 if file.exists() else 0


def ended(client: JobSubmissionClient, job: str) -> JobStatus:
    wait(lambda: client.get_job_status(job) in ENDED, "the job to end")
    return client.get_job_status(job)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_is_stopped_leaves_a_checkpoint_and_the_next_goes_on_from_it(client, tmp_path) -> None:
    run_dir = tmp_path / "tiny"
    first = submit(client, command(tmp_path, "tiny", 300))
    wait(lambda: steps_done(run_dir) >= 4 or client.get_job_status(first) in ENDED, "four steps")
    assert client.get_job_status(first) == JobStatus.RUNNING, client.get_job_logs(first)
    client.stop_job(first)
    assert ended(client, first) == JobStatus.STOPPED
    *_, checkpoint = sorted((run_dir / "checkpoints").glob("step_*"))
    reached = int(checkpoint.name.removeprefix("step_"))
    assert 2 <= reached < 300
    assert "stopped; the same command goes on from the last checkpoint" in client.get_job_logs(first)

    second = submit(client, command(tmp_path, "tiny", reached + 2))
    assert ended(client, second) == JobStatus.SUCCEEDED, client.get_job_logs(second)
    assert [row["step"] for row in read_jsonl(run_dir / "metrics.jsonl")] == list(range(reached + 3))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jobs_side_by_side_do_not_touch_each_other(client, tmp_path) -> None:
    alone = command(tmp_path, "alone", 60) + " in_process=true"
    subprocess.run(alone.split(), cwd=ROOT, check=True, capture_output=True)
    jobs = {name: submit(client, command(tmp_path, name, steps)) for name, steps in (("stopped", 300), ("stays", 60))}
    for name, job in jobs.items():
        wait(lambda n=name, j=job: steps_done(tmp_path / n) >= 2 or client.get_job_status(j) in ENDED, "two steps")
    assert client.get_job_status(jobs["stopped"]) == JobStatus.RUNNING, client.get_job_logs(jobs["stopped"])
    assert client.get_job_status(jobs["stays"]) == JobStatus.RUNNING, "it was done before the other was stopped"
    client.stop_job(jobs["stopped"])
    assert ended(client, jobs["stays"]) == JobStatus.SUCCEEDED, client.get_job_logs(jobs["stays"])
    assert ended(client, jobs["stopped"]) == JobStatus.STOPPED
    assert read_curve(tmp_path / "stays") == read_curve(tmp_path / "alone")
