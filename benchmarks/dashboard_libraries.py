"""The same charts by uPlot and by plotly.js, in a page with nothing else: why the dashboard uses the one it does."""

import statistics
from importlib import resources
from typing import Any

from chromium import open_page
from plotly.offline import get_plotlyjs

CHARTS, RUNS, BINS = 9, 50, 400

SET_UP = f"""
document.body.innerHTML = "";
window.places = Array.from({{length: {CHARTS}}}, () => {{
  const place = document.createElement("div");
  Object.assign(place.style, {{width: "370px", height: "220px", float: "left"}});
  document.body.append(place);
  return place;
}});
window.xs = Array.from({{length: {BINS}}}, (_, i) => 25 * i);
window.lines = () => Array.from({{length: {RUNS}}}, (_, r) =>
  xs.map((x) => 1 - Math.exp(-x / (900 + 50 * r)) + Math.random() / 9));
"""
UPLOT = {
    "draw": """window.plots = places.map((p) => new uPlot({width: 370, height: 220, legend: {show: false},
        scales: {x: {time: false}}, series: [{}, ...Array(RUNS).fill({stroke: "#4c8df6", points: {show: false}})]},
        [xs, ...lines()], p))""".replace("RUNS", str(RUNS)),
    "change": "plots.forEach((plot) => plot.setData([xs, ...lines()]))",
}
PLOTLY = {
    "draw": """await Promise.all(places.map((p) => Plotly.newPlot(p, lines().map((y) => ({x: xs, y, type: "scatter",
        mode: "lines", line: {width: 1}})), {showlegend: false, width: 370, height: 220}, {displayModeBar: false})))""",
    "change": """await Promise.all(places.map((p) => Plotly.react(p, lines().map((y) => ({x: xs, y, type: "scatter",
        mode: "lines", line: {width: 1}})), p.layout, {displayModeBar: false})))""",
}
TIMED = """(async () => {{ const t = performance.now(); {action};
    await new Promise((r) => requestAnimationFrame(() => setTimeout(r))); return performance.now() - t; }})()"""


async def compare_libraries() -> dict[str, Any]:
    """Milliseconds to draw CHARTS charts of RUNS lines with BINS points each, and to give them new values."""
    static = resources.files("deltarl.rl.dashboard") / "static" / "vendor"
    sources = {"uPlot": (static / "uPlot.iife.min.js").read_text(), "plotly.js": get_plotlyjs()}
    found = {}
    for name, actions in {"uPlot": UPLOT, "plotly.js": PLOTLY}.items():
        async with open_page() as page:
            await page.evaluate(sources[name] + "; 0")
            await page.evaluate(SET_UP + "; 0")
            drawn = await page.evaluate(TIMED.format(action=actions["draw"]))
            changed = [await page.evaluate(TIMED.format(action=actions["change"])) for _ in range(5)]
        found[name] = {"draw_ms": round(drawn), "change_ms": round(statistics.median(changed))}
    return found
