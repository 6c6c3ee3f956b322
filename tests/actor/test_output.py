"""Each worker's output is in the run's folder, in the file that an error names, and secrets are in none."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from deltarl.actor.fleet import Fleet, WorkerLostError
from deltarl.actor.host import WorkerSpec
from deltarl.actor.redaction import redacted_tree

cloudpickle.register_pickle_by_value(sys.modules[__name__])

SECRET = "hf_0123456789abcdef"


class Talker:
    def __init__(self) -> None:
        print("constructed")

    def talk(self, text: str) -> int:
        print(f"said {text}", flush=True)
        print("on stderr", text, file=sys.stderr)
        logging.getLogger("deltarl.test").info("logged %s", text)
        subprocess.run(["echo", "a child"], check=True)
        return os.getpid()

    def die(self) -> None:
        os.abort()


def test_a_worker_and_the_one_that_takes_its_place_write_to_one_file_which_errors_name(ray_address, tmp_path, caplog):
    fleet = Fleet("talkers", WorkerSpec(Talker, num_cpus=0.05, fleet="rollout", logs=tmp_path), 1)
    try:
        first = fleet.map("talk", [("one",)])[0]
        with pytest.raises(WorkerLostError, match=rf"rollout-0 \(its output: {tmp_path}/rollout-0.log\)"):
            fleet.map("die", [()])
        assert f"{tmp_path}/rollout-0.log" in caplog.text
    finally:
        fleet.close()
    text = (tmp_path / "rollout-0.log").read_text()
    assert f"process {first} on" in text
    assert text.count("constructed") == 3
    for line in ("said one", "on stderr one", "deltarl.test: logged one", "a child", "Aborted"):
        assert line in text


def test_output_stays_where_it_was_on_a_node_without_the_runs_folder(tmp_path):
    code = "from deltarl.actor.output import append_output_to as f; from pathlib import Path; import sys"
    code += "\nf(Path(sys.argv[1])); print('still here')"
    command = [sys.executable, "-c", code, str(tmp_path / "not" / "there.log")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "still here\n"
    assert not list(tmp_path.iterdir())


def test_secrets_of_the_environment_are_not_in_a_workers_output(tmp_path):
    code = """
import logging, os, sys
from pathlib import Path
from deltarl.actor.output import append_output_to
append_output_to(Path(sys.argv[1]))
print(os.environ["HF_TOKEN"])
print(dict(os.environ), file=sys.stderr)
try:
    raise ValueError(os.environ["HF_TOKEN"])
except ValueError:
    logging.getLogger("x").exception("with %s", os.environ["HF_TOKEN"])
raise ValueError("uncaught " + os.environ["HF_TOKEN"])
"""
    file = tmp_path / "worker.log"
    environment = os.environ | {"HF_TOKEN": SECRET}
    subprocess.run([sys.executable, "-c", code, str(file)], env=environment, check=False)
    text = file.read_text()
    assert SECRET not in text
    assert text.count("<HF_TOKEN>") == 5
    assert "uncaught" in text


def test_only_what_is_named_like_a_secret_and_long_enough_is_redacted(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "abcdefgh")
    monkeypatch.setenv("SOME_TOKEN", "a")
    monkeypatch.setenv("MY_HOME", "/home/person")
    tree = {"a": ["x abcdefgh y", 3, None], "abcdefgh": {"b": "/home/person has a token"}}
    expected = {"a": ["x <MY_API_KEY> y", 3, None], "<MY_API_KEY>": {"b": "/home/person has a token"}}
    assert redacted_tree(tree) == expected


def test_the_file_of_a_worker_is_its_own(tmp_path):
    spec = WorkerSpec(Talker, fleet="reward", index=3, logs=Path(tmp_path))
    assert spec.log_file == tmp_path / "reward-3.log"
    assert WorkerSpec(Talker).log_file is None
