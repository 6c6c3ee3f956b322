"""Checkpoints of a run: `checkpoints/step_000120/`, all there or not there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

PREFIX = "step_"


class CheckpointStore:
    """The checkpoint folders of one run.

    A checkpoint is written under a temporary name and renamed when complete; renaming is atomic, so a crash while
    writing leaves the previous ones as they were, and a folder named `step_*` can be trusted.
    """

    def __init__(self, run_dir: Path, keep: int):
        """
        Args:
            keep: newest checkpoints to keep.
        """
        self._root, self._keep = run_dir / "checkpoints", keep

    def save(self, step: int, state: dict[str, float], write: Callable[[Path], None]) -> Path:
        """Makes the checkpoint of `step`: `write` fills the folder, `state` goes into its run_state.json."""
        self._root.mkdir(parents=True, exist_ok=True)
        final, partial = self._root / f"{PREFIX}{step:06d}", self._root / f".partial_{step:06d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write(partial)
        (partial / "run_state.json").write_text(json.dumps({"step": step, **state}))
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in self._all()[: -self._keep]:
            shutil.rmtree(old)
        return final

    def latest(self) -> Path | None:
        """The newest complete checkpoint, if any."""
        found = self._all()
        return found[-1] if found else None

    @staticmethod
    def state(folder: Path) -> dict[str, float]:
        """What `save` was given as `state`, and the step."""
        return json.loads((folder / "run_state.json").read_text())

    def _all(self) -> list[Path]:
        return sorted(self._root.glob(f"{PREFIX}*"), key=lambda folder: int(folder.name.removeprefix(PREFIX)))
