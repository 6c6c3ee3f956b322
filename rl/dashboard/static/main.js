// Puts the views together, follows the runs, and listens to keys.

import { drawAlerts } from "./alerts.js";
import { known, refreshRuns } from "./api.js";
import { closeCharts, layout, openCharts, redraw, resize, syncToolbar } from "./charts.js";
import { drawConfig } from "./config.js";
import { drawSamples, turnPage } from "./samples.js";
import { drawSidebar, setUpSidebar, showAll, showNone } from "./sidebar.js";
import { get, onChange, set } from "./store.js";
import { closeTimeline, drawTimeline } from "./timeline.js";

const VIEWS = ["charts", "samples", "config", "timeline", "alerts"];
const FOLLOW_MS = 2000;
const READING_MS = 500;
const view = document.getElementById("view");
const byId = (id) => document.getElementById(id);
let paused = false;
let timer = 0;
let opened = false;

function openView() {
  opened = true;
  closeCharts();
  closeTimeline();
  for (const tab of document.querySelectorAll("[data-view]")) tab.setAttribute("aria-selected", tab.dataset.view === get("view"));
  view.dataset.shown = get("view");
  if (get("view") === "charts") {
    openCharts(view);
    syncToolbar();
  } else drawView();
}

/** Draws the view again after something changed in it. */
function drawView() {
  if (get("view") === "charts") layout();
  else if (get("view") === "samples") drawSamples(view);
  else if (get("view") === "config") drawConfig(view);
  else if (get("view") === "timeline") drawTimeline(view);
  drawAlerts(view);
}

async function follow() {
  clearTimeout(timer);
  let reading = 0;
  try {
    const news = await refreshRuns();
    const runs = [...known.runs.values()];
    reading = runs.filter((run) => !run.complete).length;
    const running = runs.filter((run) => run.state === "running").length;
    byId("status").textContent = paused ? "Paused" : reading ? `First look; reading ${runs.length - reading} of ${runs.length} runs` : `${runs.length} runs, ${running} running`;
    byId("status").classList.toggle("live", running > 0 && !paused);
    if (news) {
      drawSidebar();
      // Samples are left as they are while someone reads them; a change of filter asks again.
      if (opened && get("view") === "charts") layout();
      drawAlerts(view);
    }
  } catch (error) {
    byId("status").textContent = `The server does not answer: ${error.message}`;
  }
  if (!paused) timer = setTimeout(follow, reading ? READING_MS : FOLLOW_MS);
}

function applyTheme() {
  document.documentElement.dataset.theme = get("theme");
  byId("theme").textContent = { "": "Theme: system", light: "Theme: light", dark: "Theme: dark" }[get("theme")];
}

const nextTheme = () => set({ theme: { "": "light", light: "dark", dark: "" }[get("theme")] });

function pause() {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", paused);
  byId("pause").textContent = paused ? "Go on" : "Pause";
  follow();
}

const smoother = (by) => set({ smooth: Math.min(0.99, Math.max(0, Number((Number(get("smooth")) + by).toFixed(2)))) });

const KEYS = {
  a: showAll,
  n: showNone,
  x: () => set({ x: { step: "tokens", tokens: "time", time: "step" }[get("x")], zoom: "" }),
  l: () => set({ log: get("log") ? "" : "1" }),
  z: () => set({ zoom: "" }),
  t: nextTheme,
  p: pause,
  j: () => get("view") === "samples" && turnPage(1),
  k: () => get("view") === "samples" && turnPage(-1),
  r: () => byId("run-filter").focus(),
  "/": () => byId("search")?.focus(),
  "[": () => smoother(-0.1),
  "]": () => smoother(0.1),
  "?": () => byId("help").showModal(),
};

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target.matches("input")) return event.target.blur();
  const typing = event.target.matches("input:not([type=checkbox], [type=range]), select, textarea");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const number = Number(event.key);
  const action = number >= 1 && number <= VIEWS.length ? () => set({ view: VIEWS[number - 1] }) : KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

const only = (changed, ...keys) => [...changed].every((key) => keys.includes(key));

onChange((changed) => {
  if (changed.has("theme")) applyTheme();
  if (changed.has("filter") || changed.has("runs")) drawSidebar();
  if (changed.has("view") || changed.has("theme")) return openView();
  if (only(changed, "filter")) return;
  if (get("view") !== "charts") return drawView();
  syncToolbar();
  if (only(changed, "smooth", "log", "x", "zoom", "group", "band")) redraw();
  else layout();
});

for (const tab of document.querySelectorAll("[data-view]")) tab.addEventListener("click", () => set({ view: tab.dataset.view }));
byId("theme").addEventListener("click", nextTheme);
byId("pause").addEventListener("click", pause);
byId("help-button").addEventListener("click", () => byId("help").showModal());
document.querySelector("[data-skip]").addEventListener("click", (event) => (event.preventDefault(), view.focus()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", openView);
new ResizeObserver(resize).observe(view);
document.addEventListener("visibilitychange", () => document.hidden || paused || follow());

applyTheme();
setUpSidebar();
await follow();
openView();
drawAlerts(view);
