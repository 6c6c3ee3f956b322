"""A checkpoint is all there or not there."""

from pathlib import Path

import pytest

from deltarl.rl import checkpoint
from deltarl.rl.checkpoint import CheckpointStore


def save(store: CheckpointStore, step: int, score: float | None = None) -> Path:
    folder = store.begin()
    (folder / "weights").write_text(str(step))
    return store.complete(folder, step, {"tokens_total": 10.0 * step}, score)


def names(run_dir: Path) -> list[str]:
    return sorted(f.name for f in (run_dir / "checkpoints").glob("step_*"))


def test_what_was_saved_is_the_latest(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    assert store.latest() is None
    for step in (9, 10, 999_999, 1_000_000):
        assert save(store, step) == store.latest() == (tmp_path / "checkpoints" / "latest").resolve()
    assert (store.latest() / "weights").read_text() == "1000000"
    assert CheckpointStore.state(store.latest()) == {"step": 1_000_000, "tokens_total": 1e7}
    assert CheckpointStore(tmp_path, keep=5).latest() == store.latest()


def test_only_the_newest_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in range(1, 6):
        save(store, step)
    assert names(tmp_path) == ["step_000004", "step_000005"]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_the_best_are_kept_besides(tmp_path):
    store = CheckpointStore(tmp_path, keep=2, keep_best=2)
    assert store.best() is None
    for step, score in enumerate((0.5, 0.9, None, 0.9, 0.7, 0.1, None, 0.2), start=1):
        save(store, step, score)
    assert names(tmp_path) == [f"step_{step:06d}" for step in (2, 4, 7, 8)]
    assert store.best().name == "step_000004"
    assert store.best() == (tmp_path / "checkpoints" / "best").resolve()
    assert store.state(store.best())["score"] == 0.9


def test_an_incomplete_one_leaves_the_previous_ones_as_they_were(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    first = save(store, 1)
    half = store.begin()
    (half / "weights").write_text("half")
    assert store.latest() == first
    assert (first / "weights").read_text() == "1"
    again = save(store, 2)
    assert store.latest() == again
    assert sorted(f.name for f in again.iterdir()) == ["run_state.json", "weights"]
    assert not half.exists()
    with pytest.raises(FileNotFoundError):  # by whoever began it, should it still be alive
        store.complete(half, 3, {})
    assert store.latest() == again


def test_the_checkpoint_of_a_step_replaces_an_older_one(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    (save(store, 3) / "old_shard").write_text("old")
    assert sorted(f.name for f in save(store, 3).iterdir()) == ["run_state.json", "weights"]


def test_what_is_half_deleted_is_no_checkpoint(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1)
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *args, **kwargs: None)  # as if killed before it did much
    second = save(store, 2)
    assert store.latest() == second
    assert names(tmp_path) == ["step_000002"]
