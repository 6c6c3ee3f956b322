"""One run as the page lists it: where it is, how far it got, what it was told to do."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from deltarl.rl.dashboard.columns import Columns
from deltarl.rl.dashboard.tail import START, Tail
from deltarl.rl.metrics import METRICS_FILE

CONFIG_FILE = "config.yaml"
State = Literal["running", "finished", "stopped"]
QUIET_S = 120.0
"""A run that wrote nothing for so long, or for as long as five of its steps take, counts as stopped."""
MAX_ALERTS = 50
SHOWN = ("reward/mean", "eval/pass@1", "sft/loss")

SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times as fast


@dataclass
class Run:
    """A folder with a metrics.jsonl.

    Attributes:
        complete: all of the file has been read, not only a first look taken.
        version: grows with every change that the page should see.
        shown: the state that the page was told with this version.
    """

    id: str
    folder: Path
    columns: Columns = field(default_factory=Columns)
    tail: Tail = START
    complete: bool = False
    version: int = 0
    written: float = 0.0
    shown: State | None = None
    config: dict[str, Any] = field(default_factory=dict)
    config_written: float = -1.0

    @property
    def metrics_file(self) -> Path:
        return self.folder / METRICS_FILE

    def state(self) -> State:
        """Finished once the configured number of steps is done, else by when metrics.jsonl was last written to."""
        steps = self.config.get("steps")
        if isinstance(steps, int) and (self.columns.last("step") or 0) >= steps:
            return "finished"
        patience = max(QUIET_S, 5 * (self.columns.last("time/step") or 0.0))
        return "running" if time.time() - self.written < patience else "stopped"

    def read_config(self, root: Path) -> None:
        """Reads config.yaml again if it changed; a folder without one, or with one that is not YAML, has no keys."""
        path = inside(root, self.folder / CONFIG_FILE)
        written = path.stat().st_mtime if path else 0.0
        if path is None or written == self.config_written:
            return
        try:
            found = yaml.load(path.read_bytes(), Loader=SafeLoader)
        except (yaml.YAMLError, OSError):
            found = None
        self.config, self.config_written = found if isinstance(found, dict) else {}, written

    def summary(self) -> dict[str, Any]:
        """What the list of runs shows, JSON-ready."""
        steps = self.config.get("steps")
        return {
            "id": self.id,
            "version": self.version,
            "state": self.state(),
            "complete": self.complete,
            "step": self.columns.last("step"),
            "steps": steps if isinstance(steps, int) else None,
            "written": self.written,
            "rows": self.columns.rows,
            "skipped": self.columns.skipped,
            "latest": {name: self.columns.last(name) for name in SHOWN if name in self.columns.values},
            "metrics": [name for name in self.columns.values if name != "step"],
            "config": {key: text for key, text in flatten(self.config).items() if len(text) <= 200},
            "alerts": self.alerts(),
        }

    def alerts(self) -> dict[str, list[list[float]]]:
        """By alert, the newest stretches [first step, last step] over which it was on."""
        found = {}
        for name, column in self.columns.values.items():
            if not name.startswith("alert/") or not (column > 0).any():
                continue
            logged = np.isfinite(column)
            steps, on = self.columns.values["step"][logged], column[logged] > 0
            edges = np.flatnonzero(np.diff(on.astype(np.int8), prepend=0, append=0))
            stretches = [[float(steps[a]), float(steps[b - 1])] for a, b in zip(edges[::2], edges[1::2], strict=True)]
            found[name.removeprefix("alert/")] = stretches[-MAX_ALERTS:]
        return found


def find_runs(root: Path) -> Iterator[Path]:
    """Folders with a metrics.jsonl at or under `root`, in order; links that lead out of it are left alone."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in ("checkpoints", "wandb")
        )
        if METRICS_FILE in files and inside(root, Path(folder) / METRICS_FILE):
            yield Path(folder)


def inside(root: Path, path: Path) -> Path | None:
    """`path` resolved, if it is a file at or under `root` (itself resolved), else None."""
    resolved = path.resolve()
    return resolved if resolved.is_relative_to(root) and resolved.is_file() else None


def flatten(tree: Any, prefix: str = "") -> dict[str, str]:
    """Configuration values as text by their dotted keys."""
    if isinstance(tree, dict) and tree:
        return {
            key: text for name, sub in tree.items() for key, text in flatten(sub, f"{prefix}.{name}".strip(".")).items()
        }
    return {prefix: tree if isinstance(tree, str) else yaml_text(tree)}


def yaml_text(value: Any) -> str:
    """A value in one line, as a recipe has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
