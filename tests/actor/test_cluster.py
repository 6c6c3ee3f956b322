"""Nodes leave and join: three raylets on one machine, of which one is killed in the middle of a step."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deltarl.rl.cli import load_config
from deltarl.rl.jsonl import read_jsonl
from deltarl.rl.metrics import read_curve
from deltarl.rl.train import train

HERE = Path(__file__).parent
# On three nodes of one CPU; two have no room for all.
OPTIONS = ["steps=8", "rollout.num_workers=4", "reward.num_workers=2", "rollout.num_cpus=0.4", "learner.num_cpus=0.4"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_loses_a_node_in_the_middle_of_a_step_goes_on_with_those_left_to_the_same_read_curve(tmp_path):
    # Ray notes there where the cluster is, and others' runs are not to join it. Paths of sockets must be short.
    rays = tempfile.TemporaryDirectory(prefix="ray_")
    options = [*OPTIONS, f"output_dir={tmp_path}"]
    undisturbed = load_config(HERE.parent / "rl" / "tiny.yaml", [*options, "name=undisturbed", "in_process=true"])
    train(undisturbed)
    run = subprocess.run(
        [sys.executable, str(HERE / "cluster_run.py"), *options],
        env=os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": rays.name},
        capture_output=True,
        text=True,
    )
    rays.cleanup()
    assert run.returncode == 0, run.stderr[-3000:]
    assert read_curve(tmp_path / "tiny") == read_curve(undisturbed.run_dir)
    samplers = json.loads(run.stdout.splitlines()[-1])
    assert samplers["3"] == 4
    assert 0 < samplers["5"] < 4
    assert samplers["6"] == 4
    last = read_jsonl(tmp_path / "tiny" / "metrics.jsonl")[-1]
    assert last["worker/restarts"] > 0
    assert last["worker/learner_restarts"] == 0
