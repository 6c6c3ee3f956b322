"""How fast the dashboard opens and answers with many long runs, in headless Chromium.

python benchmarks/dashboard.py --out benchmarks/results/dashboard.json
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "rl")]

from chromium import Page, open_page  # noqa: E402
from dashboard_libraries import compare_libraries  # noqa: E402
from dashboard_runs import METRICS, make_runs  # noqa: E402
from machine import describe  # noqa: E402

# All charts in the window are drawn, and the browser has shown them.
FIRST_PAINT = """
(function check() {
  const cards = [...document.querySelectorAll(".card")].filter((c) => c.getBoundingClientRect().top < innerHeight);
  if (cards.length && cards.every((c) => c.querySelector("canvas"))) {
    requestAnimationFrame(() => setTimeout(() => {
      window.firstPaint = performance.now();
      window.drawn = cards.length;
    }));
  } else requestAnimationFrame(check);
})();
"""
# Milliseconds from an event to the frame after it, everything in between done.
TIMED = """(async () => {{ const t = performance.now(); {action};
    await new Promise((r) => requestAnimationFrame(() => setTimeout(r))); return performance.now() - t; }})()"""
SLIDE = "const s = document.querySelector('#smooth'); s.value = {value}; s.dispatchEvent(new Event('input'))"
TOGGLE = "document.querySelector('#runs li:nth-child({number}) input').click()"
LOG = "document.querySelector('#log').click()"
GROUP = "const g = document.querySelector('#group'); g.value = '{value}'; g.dispatchEvent(new Event('change'))"


async def open_dashboard(page: Page, url: str) -> dict[str, Any]:
    """Milliseconds from navigation to the first full paint of the charts in the window."""
    await page.goto("about:blank")
    before = await page.cpu_seconds()
    await page.goto(url)
    first = await page.wait_for("window.firstPaint", 60)
    cpu = await page.cpu_seconds() - before
    return {
        "first_paint_ms": round(first),
        "browser_cpu_ms": round(1000 * cpu),
        "charts": await page.evaluate("window.drawn"),
    }


async def interactions(page: Page) -> dict[str, Any]:
    """Median and largest milliseconds of what a reader does."""
    actions = {
        "smoothing": [SLIDE.format(value=0.5 + 0.02 * i) for i in range(20)],
        "run off, run on": [TOGGLE.format(number=1 + i // 2) for i in range(20)],
        "log scale": [LOG] * 10,
        "group by, no grouping": [GROUP.format(value=v) for v in ("learner.learning_rate", "") * 5],
    }
    found = {}
    for name, scripts in actions.items():
        before = await page.cpu_seconds()
        times = [await page.evaluate(TIMED.format(action=script)) for script in scripts]
        cpu = 1000 * (await page.cpu_seconds() - before) / len(times)
        median = round(statistics.median(times))
        found[name] = {"median_ms": median, "max_ms": round(max(times)), "browser_cpu_ms": round(cpu)}
    return found


async def measure(root: Path) -> dict[str, Any]:
    load, started = os.getloadavg()[0], time.monotonic()
    command = [sys.executable, "-m", "deltarl.rl.dashboard.command", str(root), "--port", "0"]
    server = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert server.stdout is not None
        address = re.search(r"http://\S+", (await server.stdout.readline()).decode())
        if address is None:
            raise RuntimeError("the dashboard did not start")
        listening = time.monotonic() - started
        async with open_page() as page:
            await page.call("Page.addScriptToEvaluateOnNewDocument", source=FIRST_PAINT)
            cold = await open_dashboard(page, address[0])
            await page.wait_for("document.querySelector('#status').textContent.includes('running')", 300)
            whole = time.monotonic() - started
            print(f"first look {cold}, all read after {whole:.1f} s", file=sys.stderr)
            warm = [await open_dashboard(page, address[0]) for _ in range(5)]
            await asyncio.sleep(1)
            return {
                "load_average": load,
                "server_listens_after_s": round(listening, 2),
                "first_look": cold,
                "all_read_after_s": round(whole, 1),
                "opened_again": warm,
                "interactions": await interactions(page),
                "server_rss_mb": round(_rss_mb(server.pid)),
                "errors": page.errors,
            }
    finally:
        server.terminate()
        await server.wait()


def _rss_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="folder for the made-up runs, used again if it is there")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = args.keep or Path(temporary)
        if not list(root.glob("run-*")):
            make_runs(root, args.runs, args.steps)
        size = sum(path.stat().st_size for path in root.glob("*/metrics.jsonl"))
        found: dict[str, Any] = {
            "machine": describe(["aiohttp", "numpy", "pydantic_core"]),
            "runs": args.runs,
            "steps": args.steps,
        }
        found |= {"metrics": len(METRICS), "megabytes": round(size / 1e6)}
        found |= asyncio.run(measure(root))
        found["libraries"] = asyncio.run(compare_libraries())
    text = json.dumps(found, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
