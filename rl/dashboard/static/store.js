// All that is chosen lives in the address after "#", so that a link is a view.

const DEFAULTS = {
  view: "charts",
  runs: "", // ids joined by commas; "" is all but warm starts, "-" none
  filter: "",
  x: "step",
  smooth: "0.6",
  log: "",
  group: "",
  band: "range",
  panel: "Overview",
  q: "",
  pins: "",
  wide: "",
  zoom: "", // "low:high" of the x axis
  theme: "",
  run: "", // of samples and timeline
  mode: "browse",
  step: "",
  split: "",
  verdict: "",
  text: "",
  page: "0",
  other: "",
  a: "",
  b: "",
  only: "",
  same: "", // configuration: also what is equal
};

const listeners = [];
let state = read();

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(Object.entries(DEFAULTS).map(([key, value]) => [key, given.get(key) ?? value]));
}

export const get = (key) => state[key];
export const list = (key) => (state[key] ? state[key].split(",").map(decodeURIComponent) : []);
export const joined = (values) => [...values].map(encodeURIComponent).join(",");
export const onChange = (listener) => listeners.push(listener);

/** Changes what is chosen, the address with it, and tells who listens which keys changed. */
export function set(changes) {
  const changed = new Set(Object.keys(changes).filter((key) => state[key] !== String(changes[key])));
  if (!changed.size) return;
  for (const key of changed) state[key] = String(changes[key]);
  const shown = Object.entries(state).filter(([key, value]) => value !== DEFAULTS[key]);
  history.replaceState(null, "", `#${new URLSearchParams(shown)}`);
  for (const listener of listeners) listener(changed);
}

addEventListener("hashchange", () => {
  const before = state;
  state = read();
  const changed = new Set(Object.keys(state).filter((key) => state[key] !== before[key]));
  for (const listener of listeners) listener(changed);
});
