// The view of alerts: what went wrong quietly, where, and where to look.

import { known } from "./api.js";
import { el, whole } from "./dom.js";
import { get, set } from "./store.js";

export function drawAlerts(view) {
  const items = [...known.runs.values()].flatMap((run) =>
    Object.entries(run.alerts).map(([name, stretches]) => ({ run, name, stretches })));
  const badge = document.getElementById("alert-count");
  badge.hidden = !items.length;
  badge.textContent = String(items.length);
  badge.setAttribute("aria-label", `${items.length} alerts`);
  if (get("view") !== "alerts") return;
  const cards = items.map(({ run, name, stretches }) => {
    const now = stretches.at(-1)[1] >= run.step && run.state === "running";
    const where = stretches.slice(-8).map(([a, b]) =>
      el("button", { type: "button", title: "Show it in the charts", on: { click: () => visit(run, name, a, b) } }, a === b ? `step ${whole(a)}` : `steps ${whole(a)}–${whole(b)}`));
    return el("article", { class: `alert ${now ? "now" : ""}` },
      el("h3", {}, `${run.id}: ${name}${now ? ", still on" : ""}`),
      el("p", {}, known.advice[name] ?? ""),
      el("p", { class: "where" }, stretches.length > 8 ? `${stretches.length} times, newest: ` : "", ...where));
  });
  if (!cards.length) cards.push(el("p", { class: "empty" }, "No alert in any run."));
  view.replaceChildren(el("div", { class: "alerts" }, ...cards));
}

function visit(run, name, first, last) {
  const margin = Math.max(20, last - first);
  const metrics = { entropy: "entropy", reward: "reward/", mismatch: "mismatch/", skipped: "optim/" };
  set({ view: "charts", x: "step", zoom: `${Math.max(0, first - margin)}:${last + margin}`, q: metrics[name] ?? "", runs: encodeURIComponent(run.id) });
}
