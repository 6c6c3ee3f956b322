// Which runs are shown, in which colour, and in which group.

import { known } from "./api.js";
import { get, joined, list, set } from "./store.js";

// Mid tones that read on white and on near-black.
const COLORS = ["#4c8df6", "#e8596f", "#14a89c", "#e69f2e", "#9274f0", "#3fb06f", "#d65db1", "#8b96a8", "#b07a3f", "#35b3d9"];

export const colorAt = (i) => (i < COLORS.length ? COLORS[i] : `hsl(${Math.round((i * 137.508) % 360)} 58% 54%)`);

/** A warm start lies in the folder "sft" of its run. */
const isWarmStart = (id) => id.endsWith("/sft") && known.runs.has(id.slice(0, -4));

export function shown() {
  if (get("runs") === "-") return [];
  if (!get("runs")) return [...known.runs.keys()].filter((id) => !isWarmStart(id));
  return list("runs").filter((id) => known.runs.has(id));
}

export function show(ids) {
  const wanted = new Set(ids);
  const all = [...known.runs.keys()].filter((id) => !isWarmStart(id));
  const isDefault = all.length === wanted.size && all.every((id) => wanted.has(id));
  set({ runs: isDefault ? "" : wanted.size ? joined([...known.runs.keys()].filter((id) => wanted.has(id))) : "-" });
}

export function colors() {
  return new Map([...known.runs.keys()].map((id, i) => [id, colorAt(i)]));
}

/** Runs that the filter leaves: every word is in the name, the state, or "key=value" of the configuration. */
export function filteredRuns() {
  const words = get("filter").toLowerCase().split(/\s+/).filter(Boolean);
  return [...known.runs.values()].filter((run) => {
    if (!words.length) return true;
    const text = [run.id, run.state, ...Object.entries(run.config).map(([k, v]) => `${k}=${v}`)].join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

/** Configuration keys in which runs differ, and "folder". */
export function groupKeys() {
  const values = new Map();
  for (const run of known.runs.values()) {
    for (const [key, value] of Object.entries(run.config)) values.set(key, (values.get(key) ?? new Set()).add(value));
  }
  const keys = [...values].filter(([key, found]) => found.size > 1 && key !== "name" && key !== "output_dir");
  return ["folder", ...keys.map(([key]) => key).sort()];
}

export function groupOf(id) {
  const key = get("group");
  if (key === "folder") return id.includes("/") ? id.slice(0, id.lastIndexOf("/")) : "/";
  return known.runs.get(id)?.config[key] ?? "not set";
}
