// The view of charts: which metrics, drawn only while they can be seen.

import { getSeries, known } from "./api.js";
import { choice, cssColor, el } from "./dom.js";
import { draw } from "./plot.js";
import { colors, groupKeys, shown } from "./selection.js";
import { get, joined, list, set } from "./store.js";

const OVERVIEW = ["reward/mean", "eval/pass@1", "acc/train", "len/mean", "entropy", "kl/ref", "kl/old", "optim/grad_norm", "mismatch/k3", "time/step", "tok_s/rollout", "loss/policy"];
const BINS = 400;
const PANELS_LAST = ["Alerts", "Other"];

const cards = new Map(); // metric -> {card, place, plot, seen, dirty}
const cache = new Map(); // metric -> {key, grid, curves: Map(run -> curve), versions: Map(run -> version)}
let grid;
let observer;
let fetching = null;

/** Metrics of the runs that are shown: pinned first, then those of the search, or of the panel. */
export function chosenMetrics() {
  const there = new Set(shown().flatMap((id) => known.runs.get(id).metrics));
  const words = get("q").toLowerCase().split(/\s+/).filter(Boolean);
  const all = [...there];
  let found = OVERVIEW.filter((name) => there.has(name));
  if (words.length) found = all.filter((name) => words.every((word) => name.toLowerCase().includes(word)));
  else if (get("panel") === "All") found = all;
  else if (get("panel") !== "Overview" || !found.length) found = all.filter((name) => known.docs[name]?.panel === get("panel") || get("panel") === "Overview");
  return [...new Set([...list("pins").filter((name) => there.has(name)), ...found])];
}

export function openCharts(view) {
  grid = el("div", { class: "grid" });
  observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) cards.get(target.dataset.metric).seen = isIntersecting;
    update();
  }, { rootMargin: "120px" });
  cards.clear();
  view.replaceChildren(toolbar(), el("div", { class: "panels", role: "group", "aria-label": "Groups of metrics" }), grid);
  layout();
}

export function closeCharts() {
  observer?.disconnect();
  for (const { plot } of cards.values()) plot?.destroy();
  cards.clear();
}

/** Makes the cards fit what is chosen, then draws. */
export function layout() {
  const metrics = chosenMetrics();
  const wanted = new Set(metrics);
  for (const [metric, { card, plot }] of cards) {
    if (wanted.has(metric)) continue;
    observer.unobserve(card);
    plot?.destroy();
    cards.delete(metric);
  }
  for (const metric of metrics) if (!cards.has(metric)) cards.set(metric, makeCard(metric));
  const order = metrics.map((metric) => cards.get(metric).card);
  if (!metrics.length) order.push(el("p", { class: "empty" }, emptyText()));
  const same = order.length === grid.children.length && order.every((card, i) => card === grid.children[i]);
  if (!same) grid.replaceChildren(...order);
  for (const [metric, entry] of cards) decorate(metric, entry);
  drawPanels();
  redraw();
}

function emptyText() {
  if (!known.runs.size) return "No run here yet: a run is a folder with a metrics.jsonl. This page will find it.";
  return shown().length ? "No metric fits this search." : "No run is shown. Choose some at the left, or press a.";
}

/** Everything that is drawn is out of date. */
export function redraw() {
  for (const entry of cards.values()) entry.dirty = true;
  update();
}

/** New sizes: uPlot does not follow its element. */
export function resize() {
  for (const { plot, place } of cards.values()) plot?.setSize({ width: place.clientWidth, height: place.clientHeight });
}

const request = () => {
  const [low, high] = get("zoom") ? get("zoom").split(":").map(Number) : [null, null];
  return { axis: get("x"), bins: BINS, low, high };
};

/** Draws what can be seen from what is known, and asks for what is not. */
function update() {
  const ids = shown();
  const key = JSON.stringify(request());
  const visible = [...cards].filter(([, entry]) => entry.seen);
  const stale = visible.filter(([metric]) => !isFresh(cache.get(metric), ids, key)).map(([metric]) => metric);
  const palette = colors();
  for (const [metric, entry] of visible) {
    const have = cache.get(metric);
    if (!entry.dirty || have?.key !== key) continue;
    const curves = new Map(ids.filter((id) => have.curves.has(id)).map((id) => [id, have.curves.get(id)]));
    entry.plot = draw(entry.place, entry.plot, { grid: have.grid, curves, palette, unit: known.docs[metric]?.unit });
    entry.dirty = false;
  }
  if (stale.length && ids.length && !fetching) load(stale, ids, key);
}

const isFresh = (have, ids, key) => have?.key === key && ids.every((id) => have.versions.get(id) === known.runs.get(id)?.version);

async function load(metrics, ids, key) {
  const versions = new Map(ids.map((id) => [id, known.runs.get(id).version]));
  fetching = getSeries({ metrics, runs: ids, ...request() });
  try {
    const found = await fetching;
    for (const [metric, curves] of found.charts) {
      cache.set(metric, { key, grid: found.grid, curves, versions });
      if (cards.has(metric)) cards.get(metric).dirty = true;
    }
  } catch (error) {
    document.getElementById("status").textContent = `Curves could not be read: ${error.message}`;
    setTimeout(update, 2000);
    return;
  } finally {
    fetching = null;
  }
  update();
  performance.mark("charts-drawn");
}

function makeCard(metric) {
  const place = el("div", { class: "plot", role: "img", "aria-label": `Chart of ${metric}` });
  const pin = el("button", { type: "button", class: "icon pin", title: "Keep at the top", on: { click: () => flip("pins", metric) } }, "☆");
  const wide = el("button", { type: "button", class: "icon", title: "Full width", "aria-label": `${metric} in full width`, on: { click: () => flip("wide", metric) } }, "⤢");
  const save = el("button", { type: "button", class: "icon", title: "Save as PNG", "aria-label": `Save ${metric} as PNG`, on: { click: () => savePng(metric) } }, "↓");
  const doc = known.docs[metric] ?? { description: "", unit: "" };
  const heading = el("h3", { title: `${doc.description}${doc.unit ? ` [${doc.unit}]` : ""}` }, metric, el("small", {}, doc.unit));
  const card = el("article", { class: "card" }, el("header", {}, heading, pin, wide, save), place);
  card.dataset.metric = metric;
  observer.observe(card);
  return { card, place, pin, wide, plot: null, seen: false, dirty: true };
}

function decorate(metric, { card, pin, wide, place, plot }) {
  const pinned = list("pins").includes(metric);
  pin.textContent = pinned ? "★" : "☆";
  pin.setAttribute("aria-pressed", pinned);
  pin.setAttribute("aria-label", `Keep ${metric} at the top`);
  const isWide = list("wide").includes(metric);
  wide.setAttribute("aria-pressed", isWide);
  if (card.classList.contains("wide") === isWide) return;
  card.classList.toggle("wide", isWide);
  plot?.setSize({ width: place.clientWidth, height: place.clientHeight });
}

function flip(key, metric) {
  const before = list(key);
  set({ [key]: joined(before.includes(metric) ? before.filter((name) => name !== metric) : [...before, metric]) });
}

function savePng(metric) {
  const { plot } = cards.get(metric);
  if (!plot) return;
  const source = plot.ctx.canvas;
  const canvas = el("canvas", { width: source.width, height: source.height });
  const context = canvas.getContext("2d");
  context.fillStyle = cssColor("--card");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0);
  el("a", { href: canvas.toDataURL("image/png"), download: `${metric.replaceAll("/", "-")}.png` }).click();
}

function toolbar() {
  const search = el("input", { type: "search", id: "search", value: get("q"), placeholder: "Search metrics  (/)", "aria-label": "Search metrics", on: { input: () => set({ q: search.value }) } });
  const smooth = el("input", { type: "range", id: "smooth", min: 0, max: 0.99, step: 0.01, value: get("smooth"), on: { input: () => set({ smooth: smooth.value }) } });
  const log = el("input", { type: "checkbox", id: "log", checked: get("log") === "1", on: { change: () => set({ log: log.checked ? "1" : "" }) } });
  const groups = [["", "no grouping"], ...groupKeys().map((key) => [key, key])];
  if (get("group") && !groups.some(([key]) => key === get("group"))) groups.push([get("group"), get("group")]);
  const bands = [["range", "least to largest"], ["interval", "95 % of the mean"], ["none", "no band"]];
  const zoom = el("button", { type: "button", id: "unzoom", hidden: !get("zoom"), on: { click: () => set({ zoom: "" }) } }, "Zoom out");
  return el("div", { class: "toolbar", role: "toolbar", "aria-label": "How curves are drawn" },
    search,
    choice("X axis", get("x"), [["step", "step"], ["tokens", "tokens"], ["time", "time"]], (x) => set({ x, zoom: "" }), "axis"),
    el("label", {}, el("span", {}, "Smoothing"), el("span", { class: "slider" }, smooth, el("output", { for: "smooth", id: "smooth-value" }, get("smooth")))),
    choice("Group by", get("group"), groups, (group) => set({ group }), "group"),
    choice("Band", get("band"), bands, (band) => set({ band }), "band"),
    el("label", { class: "check" }, log, "log scale"),
    zoom);
}

/** The controls show what is chosen, also when a key or the address chose it. */
export function syncToolbar() {
  for (const [id, key] of [["search", "q"], ["axis", "x"], ["smooth", "smooth"], ["group", "group"], ["band", "band"]]) {
    const control = document.getElementById(id);
    if (control && control !== document.activeElement) control.value = get(key);
  }
  document.getElementById("smooth-value").textContent = get("smooth");
  document.getElementById("log").checked = get("log") === "1";
  document.getElementById("unzoom").hidden = !get("zoom");
  document.getElementById("band").disabled = !get("group");
}

function drawPanels() {
  const names = [...new Set(Object.values(known.docs).map((doc) => doc.panel))];
  names.sort((a, b) => PANELS_LAST.indexOf(a) - PANELS_LAST.indexOf(b));
  const row = document.querySelector(".panels");
  const focused = row.contains(document.activeElement) ? document.activeElement.textContent : null;
  row.replaceChildren(...["Overview", ...names, "All"].map((name) => {
    const on = !get("q") && get("panel") === name;
    return el("button", { type: "button", "aria-pressed": on, on: { click: () => set({ panel: name, q: "" }) } }, name);
  }));
  if (focused) [...row.children].find((button) => button.textContent === focused)?.focus();
}
