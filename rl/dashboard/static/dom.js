// Text reaches the page only through textContent: nothing here may ever build HTML from a string.

/** An element with properties and children; strings become text. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key === "on") for (const [name, handler] of Object.entries(value)) made.addEventListener(name, handler);
    else if (key.includes("-") || key === "role" || key === "for") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A labelled <select>; options are [value, text]. */
export function choice(label, value, options, change, id) {
  const select = el("select", { id: id ?? "", on: { change: () => change(select.value) } });
  for (const [key, text] of options) select.append(new Option(text, key, false, key === value));
  return el("label", {}, el("span", {}, label), select);
}

export const short = (value) => {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 }).format(value);
  if (size !== 0 && size < 1e-3) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
};

export const whole = (value) => Number(value).toLocaleString("en");

export function seconds(value) {
  if (value < 120) return `${Number(value.toPrecision(3))} s`;
  return value < 7200 ? `${(value / 60).toFixed(1)} min` : `${(value / 3600).toFixed(2)} h`;
}

/** A colour of the theme as a canvas understands it: light-dark() is resolved only where it is used. */
export function cssColor(name) {
  const probe = document.getElementById("probe");
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}
