"""What a finished study leaves in its folder: page, figures, tables, every point as CSV."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deltarl.rl.study.compare import ArmResult, Difference, arm_result, compare
from deltarl.rl.study.config import StudyConfig
from deltarl.rl.study.curves import read_curves, write_points
from deltarl.rl.study.figures import draw_figures
from deltarl.rl.study.page import write_page
from deltarl.rl.study.runs import SWEEP_FILE, StudyRun
from deltarl.rl.study.worker import DECODE_FILE

PAGE_FILE, POINTS_FILE, RESULT_FILE = "study.html", "points.csv", "result.json"


def write_study(study: StudyConfig, runs: Sequence[StudyRun]) -> list[str]:
    """Writes study.html, points.csv, result.json and the figures into the study's folder.

    Returns:
        The lines to print: a table of the arms and the verdicts.
    """
    folder = study.folder
    by_arm = {name: [run for run in runs if run.arm.name == name] for name in study.arms}
    results = [arm_result(name, found) for name, found in by_arm.items()]
    baseline = next(result for result in results if result.name == study.baseline)
    shared = runs[0].config.data.test.path is not None
    differences = [compare(result, baseline, shared) for result in results if result is not baseline]
    curves = {name: [read_curves(run) for run in found] for name, found in by_arm.items()}
    decode = {name: _found(found[0].config.run_dir / DECODE_FILE) for name, found in by_arm.items()}
    sweep_file = folder / SWEEP_FILE
    sweep = json.loads(sweep_file.read_text()) if study.sweep and sweep_file.exists() else None
    arms = [_arm_row(found[0], sweep) for found in by_arm.values()]
    write_points([curve for found in curves.values() for curve in found], folder / POINTS_FILE)
    (folder / RESULT_FILE).write_text(json.dumps(_finite(_as_json(results, differences, arms, decode)), indent=1))
    draw_figures(folder, curves, decode)
    write_page(
        folder / PAGE_FILE,
        name=study.name,
        results=results,
        differences=differences,
        curves=curves,
        decode=decode,
        arms=arms,
        sweep=sweep,
    )
    return [*_table(results, arms), "", *(difference.verdict for difference in differences)]


def _found(file: Path) -> Any:
    return json.loads(file.read_text())["found"]


def _arm_row(run: StudyRun, sweep: dict[str, Any] | None) -> dict[str, Any]:
    chosen = sweep["best"].get(run.arm.name, {}) if sweep else {}
    return {"name": run.arm.name, "keys": dict(run.arm.keys), "parameters": run.arm.parameters, "chosen": chosen}


def _as_json(
    results: Sequence[ArmResult], differences: Sequence[Difference], arms: Sequence[dict[str, Any]], decode: Any
) -> dict[str, Any]:
    return {
        "arms": [
            row
            | {"accuracy": r.accuracy, "spread": r.spread, "pass_at_k": r.passes, "by_seed": r.right.mean(1).tolist()}
            for row, r in zip(arms, results, strict=True)
        ],
        "differences": [asdict(d) | {"verdict": d.verdict} for d in differences],
        "decode": decode,
    }


def _finite(value: Any) -> Any:
    """With null where a number is none, which JSON has no other word for."""
    if isinstance(value, dict):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(results: Sequence[ArmResult], arms: Sequence[dict[str, Any]]) -> list[str]:
    width = max(len(result.name) for result in results)
    lines = [f"{'arm':{width}}  parameters  accuracy  ± over seeds"]
    lines += [
        f"{result.name:{width}}  {row['parameters']:>10,}  {result.accuracy:8.3f}  {result.spread:12.3f}"
        for result, row in zip(results, arms, strict=True)
    ]
    return lines
