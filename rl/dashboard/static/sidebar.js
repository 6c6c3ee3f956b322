import { known } from "./api.js";
import { el, short, whole } from "./dom.js";
import { colors, filteredRuns, show, shown } from "./selection.js";
import { get, set } from "./store.js";

const rows = new Map();

export function setUpSidebar() {
  const filter = document.getElementById("run-filter");
  filter.value = get("filter");
  filter.addEventListener("input", () => set({ filter: filter.value }));
  document.getElementById("runs-all").addEventListener("click", showAll);
  document.getElementById("runs-none").addEventListener("click", showNone);
}

export function showAll() {
  show(new Set([...shown(), ...filteredRuns().map((run) => run.id)]));
}

export function showNone() {
  const hidden = new Set(filteredRuns().map((run) => run.id));
  show(shown().filter((id) => !hidden.has(id)));
}

/** The list of runs; rows are kept, so that a click or the focus is not lost while runs go on. */
export function drawSidebar() {
  const on = new Set(shown());
  const palette = colors();
  const found = filteredRuns();
  for (const id of rows.keys()) if (!known.runs.has(id)) rows.delete(id);
  for (const run of found) {
    if (!rows.has(run.id)) rows.set(run.id, makeRow(run.id));
    fillRow(rows.get(run.id), run, on.has(run.id), palette.get(run.id));
  }
  const wanted = found.map((run) => rows.get(run.id).row);
  const list = document.getElementById("runs");
  const same = wanted.length === list.children.length && wanted.every((row, i) => row === list.children[i]);
  if (!same) list.replaceChildren(...wanted);
  document.getElementById("run-count").textContent = `${on.size} of ${known.runs.size} shown`;
}

function makeRow(id) {
  const box = el("input", { type: "checkbox", on: { change: () => toggle(id, box.checked) } });
  const [name, value, state, facts] = ["name", "value", "state", "facts"].map((part) => el("span", { class: part }));
  const only = el("button", { type: "button", class: "only", "aria-label": `Show only ${id}`, on: { click: () => show([id]) } }, "only");
  const row = el("li", {}, el("label", {}, box, el("span", { class: "text" }, el("span", { class: "first" }, name, value), el("span", { class: "meta" }, state, facts))), only);
  return { row, box, name, value, state, facts };
}

function toggle(id, checked) {
  const ids = new Set(shown());
  if (checked) ids.add(id);
  else ids.delete(id);
  show(ids);
}

function fillRow({ row, box, name, value, state, facts }, run, checked, color) {
  box.checked = checked;
  row.style.setProperty("--run", color);
  name.textContent = run.id;
  name.title = run.id;
  state.className = `state ${run.state}`;
  state.textContent = run.state;
  const step = run.steps ? `${whole(run.step ?? 0)}/${whole(run.steps)}` : `step ${whole(run.step ?? 0)}`;
  facts.textContent = step;
  const [metric, newest] = Object.entries(run.latest).find(([, v]) => v !== null) ?? ["", null];
  value.textContent = metric ? short(newest) : "";
  value.setAttribute("aria-label", metric);
  value.title = Object.entries(run.latest).map(([k, v]) => `${k} ${short(v)}`).join("\n");
  row.classList.toggle("alerting", Object.keys(run.alerts).length > 0);
}
