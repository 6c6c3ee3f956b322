"""Turns a run folder into `report.html`: one file with curves, headlines and a sample browser, no network needed.

Console script: `deltarl-report RUN_DIR [RUN_DIR ...]`.
"""

import argparse
import json
import secrets
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from deltarl.rl.jsonl import read_jsonl
from deltarl.rl.metrics import METRICS_FILE, SAMPLES_FILE
from deltarl.rl.report_charts import MAX_POINTS, Chart, build_charts
from deltarl.rl.report_gantt import LAST_STEPS
from deltarl.rl.report_tiles import build_tiles
from deltarl.rl.trace import TRACE_FILE, Span, read_trace

REPORT_FILE = "report.html"
CONFIG_FILE = "config.yaml"
SFT_METRICS_FILE = Path("sft") / METRICS_FILE

# plotly.js itself is 4.8 MB; these keep the whole page near 6 MB.
MAX_SAMPLES = 2_000
MAX_SAMPLES_CHARS = 700_000
MAX_TEXT_CHARS = 20_000


def write_report(run_dir: Path | str) -> Path:
    """Write `run_dir/report.html`, replacing an older one, and return its path.

    Reads metrics.jsonl and, where present, config.yaml, samples.jsonl, sft/metrics.jsonl and trace.json, also while the
    run goes on.

    Raises:
        FileNotFoundError: the folder has no metrics.jsonl.
        ValueError: metrics.jsonl has no row yet, or a file is damaged before its last line.
    """
    run = _read_run(Path(run_dir))
    samples = _pick_samples(run.samples)
    environment = Environment(
        loader=PackageLoader("deltarl.rl", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    charts = build_charts(run.rows, run.sft_rows, run.spans)
    page = environment.get_template("report.html.j2").render(
        name=run.name,
        tiles=build_tiles(run.rows),
        charts=charts,
        figures=Markup(htmlsafe_json_dumps([_figure_json(chart) for chart in charts])),
        samples=Markup("[{}]".format(",\n".join(samples))),
        samples_shown=len(samples),
        samples_total=len(run.samples),
        config_text=run.config_text,
        rows=len(run.rows),
        max_points=MAX_POINTS,
        updated=datetime.fromtimestamp((run.path / METRICS_FILE).stat().st_mtime).strftime("%Y-%m-%d %H:%M"),
        plotly_js=Markup(get_plotlyjs()),
        # The page's policy runs only scripts that carry this, so markup that slipped into it could run none.
        nonce=secrets.token_urlsafe(16),
    )
    target = run.path / REPORT_FILE
    temporary = target.with_suffix(".html.tmp")
    temporary.write_text(page, encoding="utf-8", errors="replace")  # a lone surrogate in a name must not stop it
    temporary.replace(target)
    return target


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: write the report of each run folder and print where it is; exits with 1 if one has no metrics."""
    parser = argparse.ArgumentParser(prog="deltarl-report", description="Write report.html into run folders.")
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", type=Path, help="folder with a metrics.jsonl")
    failed = False
    for run_dir in parser.parse_args(argv).run_dirs:
        try:
            print(write_report(run_dir))
        except (OSError, ValueError) as error:
            print(f"deltarl-report: {error}", file=sys.stderr)
            failed = True
    if failed:
        sys.exit(1)


@dataclass(frozen=True)
class _Run:
    path: Path
    name: str
    config_text: str
    rows: list[dict[str, Any]]
    sft_rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    spans: list[Span]


def _read_run(path: Path) -> _Run:
    if not (path / METRICS_FILE).is_file():
        raise FileNotFoundError(f"{path} has no {METRICS_FILE}: give the folder that a run writes into (its run_dir)")
    rows = rows_by_step(path / METRICS_FILE)
    if not rows:
        raise ValueError(f"{path / METRICS_FILE} has no rows yet: wait for the first step of the run")
    config = path / CONFIG_FILE
    config_text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    samples = path / SAMPLES_FILE
    return _Run(
        path=path,
        name=_run_name(config_text) or path.resolve().name,
        config_text=config_text,
        rows=rows,
        sft_rows=rows_by_step(path / SFT_METRICS_FILE) if (path / SFT_METRICS_FILE).is_file() else [],
        samples=read_jsonl(samples) if samples.is_file() else [],
        spans=read_trace(path / TRACE_FILE, LAST_STEPS) if (path / TRACE_FILE).is_file() else [],
    )


def rows_by_step(path: Path) -> list[dict[str, Any]]:
    """Rows in order of steps; a step that was logged in parts, e.g. training and evaluation, becomes one row."""
    merged: dict[int, dict[str, Any]] = {}
    for row in read_jsonl(path):
        if "step" not in row:
            raise ValueError(f'{path}: a row has no "step": {str(row)[:80]}')
        merged.setdefault(row["step"], {}).update(row)
    return [merged[step] for step in sorted(merged)]


def _run_name(config_text: str) -> str:
    """The name the configuration gives the run, "" if none; the page shows the text even if it is not YAML."""
    try:
        config = yaml.safe_load(config_text)
    except yaml.YAMLError:
        return ""
    name = config.get("name") if isinstance(config, dict) else None
    return name if isinstance(name, str) else ""


def _figure_json(chart: Chart) -> dict[str, Any]:
    figure = json.loads(chart.figure.to_json())
    return {"data": figure["data"], "layout": figure["layout"]}


def _pick_samples(samples: Sequence[dict[str, Any]]) -> list[str]:
    """As many samples as the page may hold, evenly over steps and the newest first, as JSON safe inside HTML."""
    seen: Counter[tuple[Any, Any]] = Counter()
    ranked = []
    for index, sample in enumerate(samples):
        step = sample.get("step", 0)
        seen[step, sample.get("split")] += 1
        ranked.append((seen[step, sample.get("split")], -step, index))
    room, picked = MAX_SAMPLES_CHARS, list[tuple[int, int, str]]()
    # The first of every step, then the second of every step, and so on until the page is full.
    for _, minus_step, index in sorted(ranked)[:MAX_SAMPLES]:
        text = str(htmlsafe_json_dumps({key: _clipped(value) for key, value in samples[index].items()}))
        room -= len(text)
        if room < 0:
            break
        picked.append((minus_step, index, text))
    return [text for _, _, text in sorted(picked)]


def _clipped(value: Any) -> Any:
    if not isinstance(value, str) or len(value) <= MAX_TEXT_CHARS:
        return value
    half = MAX_TEXT_CHARS // 2
    return f"{value[:half]}\n[... {len(value) - 2 * half:,} characters left out ...]\n{value[-half:]}"


if __name__ == "__main__":
    main()
