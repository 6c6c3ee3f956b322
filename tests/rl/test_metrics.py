"""Metric names, metrics.jsonl and samples.jsonl, and wandb staying out of the way."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from deltarl.rl import wandb_run
from deltarl.rl.jsonl import JsonlWriter, read_jsonl, truncate_after
from deltarl.rl.metrics import METRICS, MetricsWriter, SampleRow, SampleWriter, metric_doc, metrics_table


def make_writer(run_dir, mode="disabled"):
    return MetricsWriter(run_dir, {"seed": 1}, wandb_mode=mode, project="deltarl-test", name="run")


def sample(step, **changes) -> SampleRow:
    row = SampleRow(
        step=step,
        split="train",
        prompt="1 + 1 = ?",
        completion="\\boxed{2}",
        gold="2",
        score=1.0,
        kind="right",
        extracted="2",
        seconds=0.01,
        finish_reason="stop",
        weight_version=step,
        group=0,
    )
    return row | changes


def test_rows_come_back_as_written(tmp_path):
    writer = make_writer(tmp_path)
    writer.log(1, {"reward/mean": 0.25, "tokens/total": 512})
    writer.log(2, {"reward/mean": np.float32(0.5), "entropy": torch.tensor(1.5), "tokens/total": np.int64(1024)})
    writer.close()
    assert read_jsonl(tmp_path / "metrics.jsonl") == [
        {"step": 1, "reward/mean": 0.25, "tokens/total": 512},
        {"step": 2, "reward/mean": 0.5, "entropy": 1.5, "tokens/total": 1024},
    ]


def test_each_row_is_on_disk_before_the_writer_closes(tmp_path):
    writer = make_writer(tmp_path)
    writer.log(1, {"entropy": 2.0})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "entropy": 2.0}]
    writer.close()


def test_nan_and_infinity_are_written_as_null(tmp_path):
    writer = make_writer(tmp_path)
    writer.log(1, {"reward/mean": math.nan, "ratio/max": math.inf, "entropy": 1.0})
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in line
    assert "Infinity" not in line
    assert json.loads(line) == {"step": 1, "reward/mean": None, "ratio/max": None, "entropy": 1.0}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("reward/avg", "reward/"),
        ("mismatch/logprob_mean", "mismatch/logprob_abs_mean"),
        ("eval/pass@best", "eval/pass@"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest_known_and_writes_nothing(tmp_path, name, nearest):
    writer = make_writer(tmp_path)
    with pytest.raises(ValueError, match="unknown metric") as caught:
        writer.log(1, {"reward/mean": 0.0, name: 1.0})
    writer.close()
    assert repr(name) in str(caught.value)
    assert f"nearest known: '{nearest}" in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_patterns_admit_plugins_and_any_k():
    assert metric_doc("reward/math/mean") is METRICS["reward/{plugin}/mean"]
    assert metric_doc("eval/pass@16") is METRICS["eval/pass@{k}"]
    assert metric_doc("eval/pass@1") is METRICS["eval/pass@1"]
    for name in ("reward/a/b/mean", "eval/pass@", "reward/{plugin}/mean", "step"):
        with pytest.raises(ValueError, match="unknown metric"):
            metric_doc(name)


def test_table_shows_every_metric_in_three_columns():
    lines = metrics_table().splitlines()
    assert len(lines) == len(METRICS) + 2
    assert all(line.count("|") == 4 for line in lines)


def test_unknown_wandb_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="wandb mode 'on'"):
        make_writer(tmp_path, mode="on")


def test_samples_come_back_as_written_even_with_lone_surrogates(tmp_path):
    rows = [sample(1, completion="line\nbreak \u2028 \ud83d lone"), sample(2, extracted=None, tokens=7)]
    writer = SampleWriter(tmp_path)
    writer.log(rows)
    writer.close()
    assert read_jsonl(tmp_path / "samples.jsonl") == rows


def test_half_written_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "rew')
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]


def test_damage_before_the_last_line_is_an_error_that_names_the_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, \n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2: not JSON"):
        read_jsonl(path)


def test_truncate_keeps_rows_up_to_the_step_and_the_next_row_starts_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "entropy": 1.0}\n{"step": 3}\n{"step": 4, "ent')
    truncate_after(path, 2)
    with JsonlWriter(path) as writer:
        writer.append({"step": 3, "entropy": 0.5})
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}, {"step": 2, "entropy": 1.0}, {"step": 3, "entropy": 0.5}]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_truncate_without_a_file_does_nothing(tmp_path):
    truncate_after(tmp_path / "samples.jsonl", 3)
    assert not list(tmp_path.iterdir())


def test_truncate_killed_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        truncate_after(path, 1)
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]


@pytest.fixture
def wandb_offline_env(tmp_path, monkeypatch):
    """No credentials of the machine's user, and no server even if a bug asks for one."""
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()  # its settings are read from the environment once a process
    yield tmp_path
    wandb.teardown()


def test_auto_mode_follows_wandb_mode_key_and_netrc(wandb_offline_env, monkeypatch):
    import wandb

    key = "0123456789abcdef" * 3
    assert wandb_run._auto_mode(wandb) == "offline"
    (wandb_offline_env / "netrc").write_text(f"machine 127.0.0.1:9\n  login user\n  password {key}\n")
    assert wandb_run._auto_mode(wandb) == "online"
    (wandb_offline_env / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert wandb_run._auto_mode(wandb) == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_run._auto_mode(wandb) == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_run._auto_mode(wandb) == "disabled"


def test_auto_without_login_writes_an_offline_wandb_run_into_the_run_folder(wandb_offline_env):
    run_dir = wandb_offline_env / "run"
    writer = make_writer(run_dir, mode="auto")
    writer.log(1, {"reward/mean": 0.5, "entropy": math.nan})
    writer.close()
    assert list((run_dir / "wandb").glob("offline-run-*/run-*.wandb"))
    assert read_jsonl(run_dir / "metrics.jsonl") == [{"step": 1, "reward/mean": 0.5, "entropy": None}]


def test_wandb_that_cannot_start_is_a_warning(tmp_path, monkeypatch):
    def refuse(**kwargs):
        raise OSError("no server")

    monkeypatch.setattr("wandb.init", refuse)
    with pytest.warns(UserWarning, match="wandb did not start.*no server"):
        writer = make_writer(tmp_path, mode="online")
    writer.log(1, {"entropy": 1.0})
    writer.close()
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "entropy": 1.0}]


def test_wandb_that_dies_in_the_run_is_one_warning(tmp_path, monkeypatch):
    class DyingRun:
        def define_metric(self, *args, **kwargs):
            pass

        def log(self, row):
            raise BrokenPipeError("service gone")

    monkeypatch.setattr("wandb.init", lambda **kwargs: DyingRun())
    writer = make_writer(tmp_path, mode="offline")
    with pytest.warns(UserWarning, match="service gone"):
        writer.log(1, {"entropy": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.log(2, {"entropy": 0.5})
        writer.close()
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 2


def test_resumed_online_run_keeps_its_wandb_id(tmp_path, monkeypatch):
    starts = []

    class Run:
        def define_metric(self, *args, **kwargs):
            pass

        def finish(self):
            pass

    monkeypatch.setattr("wandb.init", lambda **kwargs: starts.append(kwargs) or Run())
    for _ in range(2):
        make_writer(tmp_path, mode="online").close()
    assert starts[0]["id"] == starts[1]["id"]
    assert starts[1]["resume"] == "allow"


def test_tensorboard_without_its_package_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("deltarl.rl.tensorboard_run.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"deltarl\[tensorboard\]"):
        MetricsWriter(tmp_path, {}, "disabled", "project", "run", tensorboard=True)


def test_rows_go_to_tensorboard_without_what_is_missing(tmp_path):
    event_file = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = MetricsWriter(tmp_path, {}, "disabled", "project", "run", tensorboard=True)
    writer.log(3, {"reward/mean": 0.5, "kl/ref": math.nan})
    writer.close()
    found = event_file.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in found.Scalars("reward/mean")] == [(3, 0.5)]
    assert found.Tags()["scalars"] == ["reward/mean"]


def test_the_documented_table_is_the_one_in_the_code():
    assert metrics_table() in (Path(__file__).parents[2] / "docs" / "METRICS.md").read_text()
