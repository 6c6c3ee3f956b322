// The view of configurations: keys of the runs that are shown, side by side.

import { getJson } from "./api.js";
import { el } from "./dom.js";
import { shown } from "./selection.js";
import { get, set } from "./store.js";

let asked = 0;

export async function drawConfig(view) {
  const ticket = ++asked;
  const ids = shown();
  const query = ids.map((id) => ["run", id]);
  const found = ids.length ? await getJson("/api/config", query) : {};
  if (ticket !== asked) return;
  const all = [...new Set(ids.flatMap((id) => Object.keys(found[id])))];
  const differs = (key) => new Set(ids.map((id) => found[id][key])).size > 1;
  const keys = all.filter((key) => get("same") || ids.length < 2 || differs(key));
  const same = el("input", { type: "checkbox", checked: get("same") === "1", on: { change: () => set({ same: same.checked ? "1" : "" }) } });
  const text = `${keys.length} of ${all.length} keys, ${ids.length} runs. Choose runs at the left.`;
  const head = el("tr", {}, el("th", { scope: "col" }, "key"), ...ids.map((id) => el("th", { scope: "col" }, id)));
  const rows = keys.map((key) =>
    el("tr", { class: differs(key) ? "differs" : "" }, el("th", { scope: "row" }, key), ...ids.map((id) => el("td", {}, found[id][key] ?? "–"))));
  view.replaceChildren(
    el("div", { class: "toolbar" }, el("label", { class: "check" }, same, "also show keys that are equal"), el("p", { id: "config-count" }, text)),
    keys.length
      ? el("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Configurations" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)))
      : el("p", { class: "empty" }, ids.length > 1 ? "These runs have the same configuration." : "No configuration to show."));
}
