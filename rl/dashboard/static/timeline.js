// The view of phases: bars of trace.json in lanes, with uPlot's axes, zoom and pointer.

import { getJson, known } from "./api.js";
import { choice, cssColor, el, seconds } from "./dom.js";
import { colorAt } from "./selection.js";
import { get, set } from "./store.js";

const LANE = 34;
let asked = 0;
let plot = null;

export function closeTimeline() {
  plot?.destroy();
  plot = null;
}

export async function drawTimeline(view) {
  const ticket = ++asked;
  const ids = [...known.runs.keys()];
  const run = known.runs.has(get("run")) ? get("run") : ids[0];
  const bar = el("div", { class: "toolbar" }, choice("Run", run, ids.map((id) => [id, id]), (value) => set({ run: value }), "trace-run"));
  let trace;
  try {
    trace = await getJson("/api/trace", { run: run ?? "" });
  } catch (error) {
    if (ticket === asked) view.replaceChildren(bar, el("p", { class: "empty" }, `${error.message}. A run that writes one shows its phases here.`));
    return;
  }
  if (ticket !== asked) return;
  closeTimeline();
  const legend = el("ul", { class: "legend" }, ...trace.names.slice(0, 16).map((name, i) => {
    const swatch = el("i", { "aria-hidden": "true" });
    swatch.style.background = colorAt(i);
    return el("li", {}, swatch, name);
  }));
  const place = el("div", { class: "gantt", role: "img", "aria-label": `Phases of ${run}: ${trace.lane.length} bars in ${trace.lanes.length} lanes` });
  const detail = el("p", { class: "detail", role: "status" }, "Drag to zoom, double-click to zoom out.");
  view.replaceChildren(bar, el("section", { class: "card" }, legend, place, detail));
  if (trace.lane.length) plot = gantt(place, trace, detail);
  else detail.textContent = "The trace has no bars yet.";
}

function gantt(place, trace, detail) {
  const order = trace.start.map((_, i) => i).sort((a, b) => trace.start[a] - trace.start[b]);
  const end = order.reduce((most, i) => Math.max(most, trace.start[i] + trace.seconds[i]), 0);
  const lanes = trace.lanes.length;
  const font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const axis = { stroke: cssColor("--muted"), font, ticks: { show: false }, grid: { stroke: cssColor("--grid"), width: 1 } };
  return new uPlot({
    width: place.clientWidth,
    height: lanes * LANE + 50,
    legend: { show: false },
    scales: { x: { time: false }, y: { range: [-0.5, lanes - 0.5], dir: -1 } },
    series: [{}, { scale: "y", paths: () => null, points: { show: false } }],
    axes: [
      { ...axis, values: (u, values) => values.map((v) => seconds(v)) },
      { ...axis, size: 170, grid: { show: false }, splits: () => trace.lanes.map((_, i) => i), values: () => trace.lanes.map((name) => (name.length > 26 ? `${name.slice(0, 25)}…` : name)) },
    ],
    cursor: { y: false, points: { show: false }, drag: { x: true, y: false } },
    hooks: { draw: [(u) => drawBars(u, trace, order)], setCursor: [(u) => describe(u, trace, detail)] },
  }, [[0, end], [0, lanes - 1]], place);
}

function drawBars(u, trace, order) {
  const { ctx, bbox } = u;
  const height = (bbox.height / trace.lanes.length) * 0.7;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  const { min, max } = u.scales.x;
  for (const i of order) {
    const start = trace.start[i];
    if (start > max) break;
    if (start + trace.seconds[i] < min) continue;
    const left = u.valToPos(start, "x", true);
    const width = Math.max(1, u.valToPos(start + trace.seconds[i], "x", true) - left);
    ctx.fillStyle = colorAt(trace.name[i]);
    ctx.fillRect(left, u.valToPos(trace.lane[i], "y", true) - height / 2, width, height);
  }
  ctx.restore();
}

function describe(u, trace, detail) {
  const { left, top } = u.cursor;
  if (left < 0) return;
  const [at, lane] = [u.posToVal(left, "x"), Math.round(u.posToVal(top, "y"))];
  let found = -1; // the shortest of those under the pointer: bars may lie in one another
  for (let i = 0; i < trace.lane.length; i++) {
    const inside = trace.lane[i] === lane && trace.start[i] <= at && at <= trace.start[i] + trace.seconds[i];
    if (inside && (found < 0 || trace.seconds[i] < trace.seconds[found])) found = i;
  }
  if (found < 0) return;
  const step = trace.step[found] === null ? "" : `, step ${trace.step[found]}`;
  detail.textContent = `${trace.names[trace.name[found]]}${step}: ${seconds(trace.seconds[found])}, from ${seconds(trace.start[found])}`;
}
