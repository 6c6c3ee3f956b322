"""A run killed by the operating system again and again, also while it writes a checkpoint, ends with the curve of one
that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from whole_run import TINY, answers

from deltarl.rl.cli import load_config
from deltarl.rl.metrics import read_curve
from deltarl.rl.train import train

KILLS, STEPS = 20, 24
OPTIONS = ["in_process=true", f"steps={STEPS}", "checkpoint.interval=1", "eval.interval=5", "logging.wandb=disabled"]


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_at_random_moments_ends_with_the_curve_of_one_that_was_not(tmp_path):
    straight, broken = (load_config(TINY, [f"output_dir={tmp_path / name}", *OPTIONS]) for name in ("one", "two"))
    train(straight)
    command = [sys.executable, "-m", "deltarl.rl.run_grpo", "--config", str(TINY), f"output_dir={broken.output_dir}"]
    rng, kills, writing = random.Random(0), 0, 0
    while kills < KILLS:
        process = subprocess.Popen([*command, *OPTIONS], stderr=subprocess.DEVNULL, start_new_session=True)
        done = lines(broken.run_dir / "metrics.jsonl")
        due = done + rng.randint(0, 2)
        while process.poll() is None and lines(broken.run_dir / "metrics.jsonl") < due:
            time.sleep(0.001)
        if kills % 2:  # while a checkpoint is written, if there is one before long
            deadline = time.monotonic() + 10
            while process.poll() is None and time.monotonic() < deadline:
                if any((broken.run_dir / "checkpoints").glob(".partial_*")):
                    break
        else:
            time.sleep(rng.uniform(0, 0.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            writing += any((broken.run_dir / "checkpoints").glob(".partial_*"))
        elif process.returncode:
            raise AssertionError(f"the run ended with {process.returncode}: {(broken.run_dir / 'log.txt').read_text()}")
        else:
            break
    assert subprocess.run([*command, *OPTIONS], stderr=subprocess.DEVNULL).returncode == 0
    print(f"{kills} kills, {writing} while a checkpoint was written")
    assert kills == KILLS, "the run must be longer than that"
    assert writing >= 3
    assert read_curve(broken.run_dir) == read_curve(straight.run_dir)
    assert answers(broken.run_dir) == answers(straight.run_dir)
