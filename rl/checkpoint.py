"""Checkpoints of a run: `checkpoints/step_000120/`, all there or not there."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

Write = Callable[[Path], None]
"""Writes a part of a checkpoint, of which it holds a copy, into the folder."""

PREFIX, PARTIAL, STATE = "step_", ".partial_", "run_state.json"


class CheckpointStore:
    """The checkpoint folders of one run, and links to two of them: `latest` and `best`.

    A checkpoint is filled under a temporary name and renamed when it is complete and on the disk. Renaming is atomic,
    so that a crash while writing leaves the previous ones as they were, and a folder named `step_*` can be trusted. The
    two halves may happen in two processes.
    """

    def __init__(self, run_dir: Path, keep: int, keep_best: int = 0):
        """
        Args:
            keep: newest checkpoints to keep.
            keep_best: checkpoints of the highest scores to keep besides.
        """
        self.root, self._keep, self._keep_best = run_dir.resolve() / "checkpoints", keep, keep_best

    def begin(self) -> Path:
        """An empty folder to fill; what was begun before and not completed is deleted."""
        self.root.mkdir(parents=True, exist_ok=True)
        for left in self.root.glob(f"{PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = self.root / f"{PARTIAL}{uuid4().hex}"
        folder.mkdir()
        return folder

    def complete(self, folder: Path, step: int, state: dict[str, float], score: float | None = None) -> Path:
        """Makes the filled folder the checkpoint of `step`, and deletes those that need not be kept.

        Args:
            state: goes into its run_state.json.
            score: how good the policy is, if that was measured.
        """
        (folder / STATE).write_text(json.dumps({"step": step, **state} | ({} if score is None else {"score": score})))
        for path in (*folder.rglob("*"), folder):
            _to_disk(path)
        final = self.root / f"{PREFIX}{step:06d}"
        shutil.rmtree(final, ignore_errors=True)  # there only where a killed run had written it after all
        folder.rename(final)
        self._link("latest", final)
        if best := self.best():
            self._link("best", best)
        kept = {*self._all()[-self._keep :], *self._by_score()[: self._keep_best]}
        for old in set(self._all()) - kept:
            # Half deleted, it must not have the name of a whole one.
            shutil.rmtree(old.rename(self.root / f"{PARTIAL}{uuid4().hex}"), ignore_errors=True)
        _to_disk(self.root)
        return final

    def latest(self) -> Path | None:
        """The newest complete checkpoint, if any."""
        found = self._all()
        return found[-1] if found else None

    def best(self) -> Path | None:
        """The one of the highest score, if any has one; of several, the newest."""
        found = self._by_score()
        return found[0] if found else None

    @staticmethod
    def state(folder: Path) -> dict[str, float]:
        """What `complete` was given as `state`, and the step and the score."""
        return json.loads((folder / STATE).read_text())

    def _all(self) -> list[Path]:
        return sorted(self.root.glob(f"{PREFIX}*"), key=lambda folder: int(folder.name.removeprefix(PREFIX)))

    def _by_score(self) -> list[Path]:
        scores = {folder: self.state(folder).get("score") for folder in reversed(self._all())}
        return sorted((f for f, x in scores.items() if x is not None), key=lambda f: scores[f] or 0.0, reverse=True)

    def _link(self, name: str, folder: Path) -> None:
        new = self.root / f".{name}"
        new.unlink(missing_ok=True)
        new.symlink_to(folder.name)
        new.replace(self.root / name)


def _to_disk(path: Path) -> None:
    """Has the operating system write a file, or a folder's list of files, now: a machine may crash too."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
