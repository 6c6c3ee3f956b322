"""Whole runs on one GPU that learner and samplers share."""

from pathlib import Path

import pytest
import torch

from deltarl.actor import runtime
from deltarl.rl.cli import load_config
from deltarl.rl.config import RunConfig
from deltarl.rl.metrics import read_curve, read_jsonl
from deltarl.rl.train import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

TINY = Path(__file__).parents[1] / "rl" / "tiny.yaml"
REWARD = "def variety(completions, **columns):\n    return [len(set(c)) / len(c) for c in completions]\n"
# Answers so long that several blocks of keys add to the gradient of a query.
LONG = "rollout.max_tokens=450", "rollout.num_generations=8", "model.max_position_embeddings=512"
WIDE = "model.dtype=bfloat16", "model.hidden_size=64", "model.linear_head_dim=32", "sft=null"
SHARED = "learner.num_gpus=0.5", "rollout.num_gpus=0.25"


@pytest.fixture
def configured(ray_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`configured(name, *keys)`: a run that is not to end the Ray of the other tests."""
    monkeypatch.setattr(runtime, "stop", lambda: None)
    (tmp_path / "mine.py").write_text(REWARD)
    reward = f"reward.functions=[{{name: variety, function: '{tmp_path / 'mine.py'}:variety'}}]"

    def load(name: str, *keys: str) -> RunConfig:
        own = f"name={name}", f"output_dir={tmp_path}"
        return load_config(TINY, [*WIDE, *LONG, *SHARED, reward, *own, *keys])

    return load


@pytest.mark.timeout(600)
def test_the_same_seed_gives_the_same_curve_bit_for_bit_also_after_a_stop(configured):
    once, again, stopped = (configured(name) for name in ("once", "again", "stopped"))
    train(once)
    train(again)
    train(configured("stopped", "steps=3"))
    train(stopped)
    assert read_curve(again.run_dir) == read_curve(once.run_dir)
    assert read_curve(stopped.run_dir) == read_curve(once.run_dir)


@pytest.mark.parametrize("in_flight", ["keep", "replay"])
def test_samplers_take_weights_by_handle_in_the_middle_of_their_answers(configured, in_flight, caplog):
    config = configured("ahead", "rollout.max_staleness=1", f"rollout.in_flight={in_flight}")
    train(config)
    rows = read_jsonl(config.run_dir / "metrics.jsonl")[1:]
    assert max(row["staleness/max"] for row in rows) == 1
    assert max(row["staleness/mixed_frac"] for row in rows) > 0
    assert "weights go to the samplers by ipc" in caplog.text
    assert "they go through the object store" not in caplog.text
