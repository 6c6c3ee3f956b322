// The view of samples: one by one with filters, or the answers at two steps to the same prompts.

import { getJson, known } from "./api.js";
import { choice, el, short, whole } from "./dom.js";
import { get, set } from "./store.js";

let view;
let asked = 0;
let pages = 1;

export async function drawSamples(into) {
  view = into;
  const ticket = ++asked;
  const run = get("run") && known.runs.has(get("run")) ? get("run") : [...known.runs.keys()][0];
  if (!run) return view.replaceChildren(el("p", { class: "empty" }, "No run here yet."));
  const compare = get("mode") === "compare";
  let [found, facets] = [null, null];
  try {
    facets = await getJson("/api/samples", { run, ...(compare ? {} : filters()) });
    found = compare ? await getJson("/api/compare", comparison(run, facets.steps)) : facets;
  } catch (error) {
    if (ticket === asked) view.replaceChildren(bar(run, null, compare), el("p", { class: "empty" }, error.message));
    return;
  }
  if (ticket !== asked) return; // something newer is on its way
  pages = Math.max(1, Math.ceil(found.total / found.page_size));
  const cards = compare ? found.pairs.map(pairCard) : found.rows.map(card);
  if (!cards.length) cards.push(el("p", { class: "empty" }, compare ? "No prompt was answered at both steps, or none fits." : "No sample fits these filters."));
  const text = document.activeElement?.id === "search" ? document.activeElement.selectionStart : null;
  view.replaceChildren(bar(run, facets, compare), summary(found, compare), el("div", { class: "samples" }, ...cards));
  if (text !== null) {
    const search = document.getElementById("search");
    search?.focus();
    search?.setSelectionRange(text, text);
  }
}

const filters = () => Object.fromEntries(["step", "split", "verdict", "text", "page"].map((key) => [key, get(key)]));

function comparison(run, steps) {
  const [first, last] = [steps[0] ?? 0, steps.at(-1) ?? 0];
  return { run, other: get("other"), a: get("a") || first, b: get("b") || last, only: get("only"), page: get("page") };
}

export function turnPage(by) {
  const page = Math.min(Math.max(Number(get("page")) + by, 0), pages - 1);
  set({ page });
}

function bar(run, facets, compare) {
  const ids = [...known.runs.keys()].map((id) => [id, id]);
  const any = (values) => [["", "all"], ...values.map((value) => [String(value), String(value).replaceAll("_", " ")])];
  const put = (key) => (value) => set({ [key]: value, page: 0 });
  const modes = el("div", { class: "switch", role: "group", "aria-label": "What to show" }, ...["browse", "compare"].map((mode) =>
    el("button", { type: "button", "aria-pressed": get("mode") === mode, on: { click: () => set({ mode, page: 0 }) } }, mode === "browse" ? "Browse" : "Compare two steps")));
  const parts = [modes, choice("Run", run, ids, (value) => set({ run: value, step: "", a: "", b: "", page: 0 }), "sample-run")];
  if (facets && !compare) {
    parts.push(
      choice("Step", get("step"), any(facets.steps), put("step"), "sample-step"),
      choice("Split", get("split"), any(facets.splits), put("split"), "sample-split"),
      choice("Verdict", get("verdict"), any([...facets.verdicts, "not right"]), put("verdict"), "sample-verdict"),
    );
    const search = el("input", { type: "search", id: "search", value: get("text"), placeholder: "in prompt or answer  (/)", on: { input: () => set({ text: search.value, page: 0 }) } });
    parts.push(el("label", { class: "grow" }, el("span", {}, "Text"), search));
  }
  if (facets && compare) {
    const steps = facets.steps.map((step) => [String(step), whole(step)]);
    const { a, b } = comparison(run, facets.steps);
    const only = [["", "all prompts"], ["fixed", "became right"], ["broken", "became wrong"], ["changed", "other words"]];
    parts.push(
      choice("Before: step", String(a), steps, put("a"), "step-a"),
      choice("After: run", get("other") || run, ids, put("other"), "other-run"),
      get("other") && get("other") !== run
        ? el("label", {}, el("span", {}, "After: step"), el("input", { id: "step-b", type: "number", min: 0, value: b, on: { change: (event) => put("b")(event.target.value) } }))
        : choice("After: step", String(b), steps, put("b"), "step-b"),
      choice("Show", get("only"), only, put("only"), "only"),
    );
  }
  return el("div", { class: "toolbar" }, ...parts);
}

function summary(found, compare) {
  const text = compare
    ? `${whole(found.common)} prompts were answered at both steps: ${found.fixed} became right, ${found.broken} became wrong. ${whole(found.total)} shown.`
    : `${whole(found.total)} samples, newest first.`;
  const page = Number(get("page"));
  const button = (label, by, off) => el("button", { type: "button", disabled: off, on: { click: () => turnPage(by) } }, label);
  return el("div", { class: "pager" }, el("p", { id: "sample-count" }, text),
    button("Newer (k)", -1, page === 0), el("span", {}, `page ${page + 1} of ${pages}`), button("Older (j)", 1, page >= pages - 1));
}

function chip(kind) {
  return el("span", { class: `chip ${String(kind).replace(/\W/g, "-")}` }, String(kind).replaceAll("_", " "));
}

function facts(sample) {
  return [
    `step ${whole(sample.step)}`,
    sample.split === "eval" ? "held-out" : String(sample.split),
    typeof sample.score === "number" ? `score ${short(sample.score)}` : null,
    sample.tokens ? `${sample.tokens} tokens` : null,
    sample.finish_reason ? `ended by ${sample.finish_reason}` : null,
  ].filter(Boolean).map((text) => el("span", {}, text));
}

const answer = (label, value) => el("span", {}, `${label} `, el("code", {}, value === null || value === undefined ? "none" : String(value)));

function card(sample) {
  return el("article", { class: "sample" },
    el("header", {}, chip(sample.kind), ...facts(sample)),
    el("div", { class: "texts" }, el("div", {}, el("h4", {}, "Prompt"), el("pre", {}, String(sample.prompt))), el("div", {}, el("h4", {}, "Answer"), el("pre", {}, String(sample.completion)))),
    el("footer", {}, answer("Expected", sample.gold), answer("Extracted", sample.extracted)));
}

function pairCard({ a, b, diff }) {
  const side = (sample, which, tag, cut) => {
    const pieces = diff === null ? [String(sample.completion)] : diff.map((op) => (op[0] === "equal" ? op[which] : op[which] ? el(tag, {}, op[which]) : ""));
    return el("div", {}, el("h4", {}, cut, chip(sample.kind), ...facts(sample)), el("pre", {}, ...pieces), el("p", {}, answer("Extracted", sample.extracted)));
  };
  return el("article", { class: "sample" },
    el("header", {}, el("code", { class: "prompt" }, String(b.prompt).trim()), answer("Expected", b.gold)),
    el("div", { class: "texts even" }, side(a, 1, "del", "Before "), side(b, 2, "ins", "After ")));
}
