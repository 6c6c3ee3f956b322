"""A rank of the warm start is killed: the command goes on by itself from the last checkpoint, to the same model."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


def command(folder: Path, name: str) -> list[str]:
    options = ["sft.steps=400", "sft.checkpoint_interval=50", "learner.num_ranks=2", "heartbeat=60"]
    recipe = ["--config", "tests/rl/tiny.yaml", f"output_dir={folder}", f"name={name}"]
    return [sys.executable, "rl/run_sft.py", *recipe, *options]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_rank_is_killed(tmp_path):
    subprocess.run(command(tmp_path, "whole"), cwd=ROOT, check=True, capture_output=True)
    with (tmp_path / "stderr").open("w") as stderr:
        driver = subprocess.Popen(command(tmp_path, "killed"), cwd=ROOT, stderr=stderr)
    while not list((tmp_path / "killed" / "sft").glob("checkpoints/*/masters.safetensors")):
        assert driver.poll() is None
        time.sleep(0.02)
    family = psutil.Process(driver.pid).children(recursive=True)
    ranks = [process for process in family if " ".join(process.cmdline()).startswith("ray::WarmStart")]
    assert len(ranks) == 2
    ranks[0].kill()
    assert driver.wait() == 0
    said = (tmp_path / "killed" / "log.txt").read_text()
    assert "going on by itself from checkpoint-" in said
    models = [(tmp_path / name / "initial" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert models[0] == models[1]
    assert not (tmp_path / "killed" / "sft" / "checkpoints").exists()
