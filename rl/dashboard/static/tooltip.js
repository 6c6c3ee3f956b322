// What lies under the pointer: the lines of a chart there, the nearest first.

import { el, short } from "./dom.js";

const MOST = 12;
const box = document.getElementById("tooltip");

export function hideTooltip() {
  box.hidden = true;
}

export function showTooltip(u, xText) {
  const { idx, left, top, event } = u.cursor;
  if (!event || idx === null || idx === undefined || left < 0 || !u.over.matches(":hover")) return;
  const near = u.posToVal(top, "y");
  const found = u.layers
    .map((layer, i) => ({ ...layer, value: nearest(u.data[i + 1], idx) }))
    .filter(({ faint, value }) => !faint && value !== null);
  if (!found.length) return hideTooltip();
  found.sort((a, b) => Math.abs(a.value - near) - Math.abs(b.value - near));
  const rows = found.slice(0, MOST).map(({ label, color, value }, i) => {
    const swatch = el("i", { "aria-hidden": "true" });
    swatch.style.background = color;
    return el("li", { class: i ? "" : "nearest" }, swatch, el("span", {}, label), el("b", {}, short(value)));
  });
  const more = found.length > MOST ? el("p", {}, `and ${found.length - MOST} more`) : null;
  box.replaceChildren(el("h4", {}, xText(u.data[0][idx])), el("ul", {}, ...rows), ...(more ? [more] : []));
  box.hidden = false;
  const place = u.over.getBoundingClientRect();
  const [width, height] = [box.offsetWidth, box.offsetHeight];
  const x = place.left + left + 18;
  box.style.left = `${x + width > innerWidth - 8 ? place.left + left - width - 18 : x}px`;
  box.style.top = `${Math.max(8, Math.min(place.top + top - 20, innerHeight - height - 8))}px`;
}

/** The value at a bin, or the last one before it: evaluations are far apart. */
function nearest(line, idx) {
  for (let i = idx; i >= 0; i--) if (line[i] !== null && line[i] !== undefined) return line.slice(idx).some((v) => v !== null) ? line[i] : null;
  return null;
}
