"""Progress of the warm start, which happens in other processes: read off the metrics they write."""

import logging
from pathlib import Path
from typing import Any

from tqdm import tqdm

from deltarl.rl.jsonl import read_jsonl

log = logging.getLogger(__name__)

LOG_EVERY = 100  # steps between two plain lines


class SFTProgress:
    """A bar in a terminal, a line every `LOG_EVERY` steps in the log."""

    def __init__(self, run_dir: Path, steps: int):
        self._file, self._steps = run_dir / "sft" / "metrics.jsonl", steps
        rows = self._rows()
        self._shown = rows[-1]["step"] if rows else 0  # of a training that was cut short
        self._bar = tqdm(total=steps, unit="step", desc="warm start", disable=None)

    def update(self) -> None:
        """Shows what has been written since the last call."""
        for row in self._rows():
            if row["step"] <= self._shown:
                continue
            self._bar.update(row["step"] - self._bar.n)
            self._bar.set_postfix(loss=f"{row['sft/loss']:.3f}")
            if row["step"] % LOG_EVERY == 0:
                level = logging.INFO if self._bar.disable else logging.DEBUG
                log.log(level, "warm start %d/%d: loss %.3f", row["step"], self._steps, row["sft/loss"])
            self._shown = row["step"]

    def _rows(self) -> list[dict[str, Any]]:
        return read_jsonl(self._file) if self._file.exists() else []

    def close(self) -> None:
        """Shows the rest and ends the bar."""
        self.update()
        self._bar.close()
