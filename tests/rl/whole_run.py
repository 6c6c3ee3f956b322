"""What tests of whole runs share: what of a run must not change, and ways to kill one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deltarl.rl import loop
from deltarl.rl.checkpoint import CheckpointStore
from deltarl.rl.learner import Learner
from deltarl.rl.metrics import MetricsWriter, read_jsonl

TINY = Path(__file__).parent / "tiny.yaml"


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


def answers(run_dir: Path) -> list[dict]:
    return [{name: x for name, x in row.items() if name != "seconds"} for row in read_jsonl(run_dir / "samples.jsonl")]


def kill_when(patch: pytest.MonkeyPatch, owner: type, method: str, when: Callable[..., bool], after: bool) -> None:
    """Makes `owner.method` die before or after it did its work, the first time `when` its arguments say so."""
    real = getattr(owner, method)

    def dying(self, *args, **kwargs):
        due = when(self, *args)
        if due and not after:
            raise Killed
        result = real(self, *args, **kwargs)
        if due:
            raise Killed
        return result

    patch.setattr(owner, method, dying)


KILLS = {
    "while evaluating before the first step": (loop.Loop, "_evaluate", lambda self, step: step == 0, False),
    "before the first checkpoint": (loop.Loop, "_publish", lambda self: self.fleets.learner.worker.version == 1, False),
    "before the learner's part of a checkpoint": (Learner, "save", lambda self, *_: self.version == 4, False),
    "before a checkpoint is renamed": (CheckpointStore, "complete", lambda self, folder, step, *_: step == 4, False),
    "before the last is renamed": (CheckpointStore, "complete", lambda self, folder, step, *_: step == 6, False),
    "before older ones are deleted": (CheckpointStore, "_link", lambda self, name, to: "04" in to.name, True),
    "between checkpoint and metrics": (MetricsWriter, "log", lambda self, step, row: step == 4, False),
    "between the last checkpoint and metrics": (MetricsWriter, "log", lambda self, step, row: step == 6, False),
    "between metrics and samples": (MetricsWriter, "log", lambda self, step, row: step == 4, True),
    "a step after a checkpoint": (MetricsWriter, "log", lambda self, step, row: step == 5, True),
    "between update and publishing": (Learner, "update", lambda self, share, beta: self.version == 4, True),
}
