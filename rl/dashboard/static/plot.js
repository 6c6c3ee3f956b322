// One chart: lines from curves, drawn by uPlot.

import { grouped, positions, raw, smoothed } from "./curves.js";
import { cssColor, seconds, short, whole } from "./dom.js";
import { colorAt, groupOf } from "./selection.js";
import { get, set } from "./store.js";
import { hideTooltip, showTooltip } from "./tooltip.js";

const faded = (color, share) => (color.startsWith("hsl") ? color.replace(")", ` / ${share})`) : color + Math.round(share * 255).toString(16).padStart(2, "0"));

/** What is drawn: [{label, line, color, width, faint}], and bands as pairs of indices into it. */
export function layers(curves, palette) {
  const keep = Number(get("smooth"));
  const lines = [...curves].map(([id, curve]) => [id, keep ? smoothed(curve, keep) : raw(curve), curve]);
  if (get("group")) return groupLayers(lines);
  // So many faint lines would be a grey mass, and half of the time to draw: the browser strokes 1 px fastest.
  const many = lines.length > 20;
  const faint = keep && !many ? lines.map(([id, , curve]) => ({ label: id, line: raw(curve), color: faded(palette.get(id), 0.22), width: 1, faint: true })) : [];
  return { series: [...faint, ...lines.map(([id, line]) => ({ label: id, line, color: palette.get(id), width: many ? 1 : 1.8 }))], bands: [] };
}

function groupLayers(lines) {
  const groups = new Map();
  for (const [id, line] of lines) groups.set(groupOf(id), [...(groups.get(groupOf(id)) ?? []), line]);
  const series = [];
  const bands = [];
  const names = [...groups.keys()].sort(new Intl.Collator("en", { numeric: true }).compare);
  names.forEach((name, i) => {
    const { mean, low, high } = grouped(groups.get(name), get("band"));
    const color = colorAt(i);
    if (get("band") !== "none") {
      const edge = { label: name, color: faded(color, 0.35), width: 0.5, faint: true };
      bands.push({ series: [series.length + 2, series.length + 1], fill: faded(color, 0.16) });
      series.push({ ...edge, line: low }, { ...edge, line: high });
    }
    series.push({ label: `${name} (${groups.get(name).length})`, line: mean, color, width: 2.2 });
  });
  return { series, bands };
}

export const axisLabel = { step: "step", tokens: "completion tokens", time: "time" };

export function xText(value) {
  if (get("x") === "time") return seconds(value);
  return get("x") === "tokens" ? `${short(value)} tokens` : `step ${whole(value)}`;
}

/** Draws into `place`, replacing `old` where the lines have not the same shape; returns the chart. */
export function draw(place, old, { grid, curves, palette, unit }) {
  const log = get("log") === "1";
  const { series, bands } = layers(curves, palette);
  const data = [positions(grid), ...series.map(({ line }) => (log ? line.map((v) => (v > 0 ? v : null)) : line))];
  const shape = JSON.stringify([log, get("x"), unit, bands, series.map(({ label, color, width }) => [label, color, width])]);
  if (old && old.shape === shape) {
    old.setData(data);
    return old;
  }
  if (old) old.destroy();
  const chart = new uPlot(options(place, series, bands, log, unit), data, place);
  chart.shape = shape;
  chart.layers = series;
  return chart;
}

function options(place, series, bands, log, unit) {
  const stroke = cssColor("--muted");
  const grid = { stroke: cssColor("--grid"), width: 1 };
  const font = `11px ${getComputedStyle(document.body).fontFamily}`;
  const axis = { stroke, font, grid, ticks: { show: false } };
  const percent = unit === "fraction" && !log;
  const y = (u, values) => values.map((v) => (v === null ? "" : percent ? `${Number((100 * v).toFixed(6))}%` : short(v)));
  return {
    width: place.clientWidth,
    height: place.clientHeight,
    legend: { show: false },
    padding: [10, 14, 0, 0],
    scales: { x: { time: false, range: xRange }, y: { distr: log ? 3 : 1 } },
    axes: [
      { ...axis, grid: { show: false }, size: 26, gap: 4, values: (u, values) => values.map(tick) },
      { ...axis, size: 52, gap: 6, values: y },
    ],
    series: [{}, ...series.map(lineOptions)],
    bands,
    cursor: {
      sync: { key: "x" },
      focus: { prox: 24 },
      points: { show: false },
      drag: { x: true, y: false, setScale: false },
      bind: { dblclick: () => () => set({ zoom: "" }) },
    },
    focus: { alpha: 0.35 },
    hooks: { setSelect: [zoom], setCursor: [(u) => showTooltip(u, xText)], ready: [(u) => u.over.addEventListener("mouseleave", hideTooltip)] },
  };
}

function lineOptions({ label, line, color, width }) {
  const known = line.filter((value) => value !== null).length;
  return { label, stroke: color, width, spanGaps: true, points: { show: known <= 24, size: known === 1 ? 8 : 5, fill: color } };
}

const tick = (value) => (value === null ? "" : get("x") === "time" ? seconds(value) : new Intl.NumberFormat("en", { notation: "compact" }).format(value));

/** From the first to the last value that any line has: bins reach further when longer runs are hidden. */
function xRange(u, low, high) {
  const [xs, ...lines] = u.data;
  const has = (i) => lines.some((line) => line[i] !== null && line[i] !== undefined);
  let [first, last] = [0, (xs?.length ?? 0) - 1];
  while (first < last && !has(first)) first++;
  while (last > first && !has(last)) last--;
  if (last < 0 || low === null) return [0, 1];
  return first === last ? [xs[first] - 1, xs[last] + 1] : [xs[first], xs[last]];
}

function zoom(u) {
  if (u.select.width < 4) return;
  const [low, high] = [u.select.left, u.select.left + u.select.width].map((at) => u.posToVal(at, "x"));
  u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  set({ zoom: `${Number(low.toPrecision(6))}:${Number(high.toPrecision(6))}` });
}
