"""A checkpoint is all there or not there."""

from pathlib import Path

import pytest

from deltarl.rl.checkpoint import CheckpointStore


def save(store: CheckpointStore, step: int) -> Path:
    def write(folder: Path) -> None:
        (folder / "weights").write_text(str(step))

    return store.save(step, {"tokens_total": 10.0 * step}, write)


def test_what_was_saved_is_the_latest(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    assert store.latest() is None
    for step in (9, 10, 999_999, 1_000_000):
        assert save(store, step) == store.latest()
    assert (store.latest() / "weights").read_text() == "1000000"
    assert CheckpointStore.state(store.latest()) == {"step": 1_000_000, "tokens_total": 1e7}
    assert CheckpointStore(tmp_path, keep=5).latest() == store.latest()


def test_only_the_newest_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in range(1, 6):
        save(store, step)
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["step_000004", "step_000005"]


def test_a_write_that_fails_leaves_the_previous_ones_as_they_were(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    first = save(store, 1)

    def fail(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.save(2, {}, fail)
    assert store.latest() == first
    assert (first / "weights").read_text() == "1"
    again = save(store, 2)
    assert store.latest() == again
    assert sorted(f.name for f in again.iterdir()) == ["run_state.json", "weights"]


def test_nothing_is_visible_before_it_is_complete(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    seen = []
    store.save(1, {}, lambda folder: seen.append(store.latest()))
    assert seen == [None]


def test_leftovers_of_a_killed_write_do_not_get_into_the_next(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 3)
    partial = tmp_path / "checkpoints" / ".partial_000004"
    partial.mkdir()
    (partial / "old_shard").write_text("old")
    assert store.latest().name == "step_000003"
    assert sorted(f.name for f in save(store, 4).iterdir()) == ["run_state.json", "weights"]
    assert not partial.exists()
