"""TensorBoard as a guest: the metrics as event files under `run_dir/tensorboard`, if logging.tensorboard is set."""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """Raises ValueError, with the remedy, where the package tensorboard is missing."""
    if find_spec("tensorboard") is None:
        raise ValueError(
            "logging.tensorboard needs tensorboard, which is not installed: pip install 'deltarl[tensorboard]'"
        )


class TensorBoardRun:
    """Event files of one run; a step that is logged again after a resume replaces what was there."""

    def __init__(self, run_dir: Path):
        require_tensorboard()
        self._folder = run_dir / FOLDER
        self._writer: Any = None

    def log(self, row: Mapping[str, float | None]) -> None:
        """One row of metrics with its "step"; missing values are left out."""
        step = int(row["step"] or 0)
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # here: importing it takes a second

            # What a killed run logged after its last checkpoint is void.
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in row.items():
            if name != "step" and value is not None and math.isfinite(value):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Writes what is left; a second call does nothing."""
        if self._writer is not None:
            self._writer.close()
