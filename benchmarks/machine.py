"""When, where and with what something was measured."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


def describe(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Date, commit, processor, and the versions of Python, deltarl and the packages."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "cpu": {"model": _cpu(), "count": len(os.sched_getaffinity(0))},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("deltarl", *packages)},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())
