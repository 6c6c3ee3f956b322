"""The table of an evaluation: a row for each checkpoint and set of problems."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from deltarl.rl.checkpoint import CheckpointStore
from deltarl.rl.cli import ConfigError
from deltarl.rl.config import RunConfig, SourceConfig
from deltarl.rl.episodes import Episodes
from deltarl.rl.evaluate import metrics_by_set
from deltarl.rl.problems import FAMILIES

TEST = "test"
"""What a table calls data.test."""


def checkpoint_in(folder: Path) -> Path:
    """The folder itself if it is a checkpoint, or the newest checkpoint of the run it is.

    Raises:
        ConfigError: it is neither.
    """
    if (folder / "config.json").is_file():
        return folder.resolve()
    newest = CheckpointStore(folder, keep=1).latest()
    if newest is None:
        raise ConfigError(f"{folder} is no checkpoint (it has no config.json) and no run with one")
    return newest


def at_lengths(config: RunConfig, lengths: Sequence[int]) -> tuple[RunConfig, str]:
    """The recipe with each held-out set of generated problems that have a length at all of `lengths` in place of its
    own: `needle` becomes `needle-256`, `needle-512`. Sets without a length stay.

    Returns:
        The recipe, and the name of the set that is its data.test now.

    Raises:
        ConfigError: no set has problems with a length.
    """
    sets: dict[str, SourceConfig] = {}
    for name, source in {TEST: config.data.test, **config.data.more_tests}.items():
        if source.problems is None or not any(_sized(p) for p in source.problems):
            sets[name] = source
            continue
        for length in lengths:
            problems = [p | {"length": length} if _sized(p) else p for p in source.problems]
            sets[f"{name}-{length}"] = source.model_copy(update={"problems": problems})
    if sets.keys() == {TEST, *config.data.more_tests}:
        raise ConfigError(f"no held-out set has problems with a length, and --lengths {list(lengths)} are given")
    first, *more = sets
    data = config.data.model_copy(update={"test": sets[first], "more_tests": {name: sets[name] for name in more}})
    return config.model_copy(update={"data": data}), first


def set_rows(checkpoint: Path, sets: Mapping[str, Episodes], timeout: float) -> list[dict[str, Any]]:
    """A row for each set: `checkpoint`, `set`, `problems`, `prompt_tokens` (their mean) and `evaluate.metrics_by_set`.

    Args:
        timeout: see there.
    """
    rows = []
    for name, metrics in metrics_by_set(sets, timeout).items():
        tokens = [len(p.token_ids) for p in sets[name].prompts]
        size = {"problems": len(tokens), "prompt_tokens": sum(tokens) / len(tokens)}
        rows.append({"checkpoint": str(checkpoint), "set": name, **size, **metrics})
    return rows


def show(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned columns; checkpoints without the part of their path that all have in common."""
    table = pd.DataFrame(rows)
    table["checkpoint"] = _short(table["checkpoint"].tolist())
    for name in [column for column in table.columns if f"{column}/low" in table.columns]:
        low, high = table.pop(f"{name}/low"), table.pop(f"{name}/high")
        ends = [f"{x:.3f} [{a:.3f}, {b:.3f}]" for x, a, b in zip(table[name], low, high, strict=True)]
        table[name] = ends
    return table.to_string(index=False, float_format="{:.4g}".format, na_rep="-")


def write(rows: Sequence[Mapping[str, Any]], name: Path) -> None:
    """`name`.csv and `name`.json (a list of the rows), with full paths and all digits."""
    name.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(f"{name}.csv", index=False)
    Path(f"{name}.json").write_text(json.dumps(list(rows), indent=2))


def _sized(source: Mapping[str, Any]) -> bool:
    family = FAMILIES.get(source.get("family", ""))
    return family is not None and family.draw_sized is not None


def _short(paths: Sequence[str]) -> list[str]:
    parts = [Path(path).parts for path in paths]
    shared = 0
    # At least the run and the checkpoint stay.
    while all(len(p) > shared + 3 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return [str(Path(*p[shared:])) for p in parts]
