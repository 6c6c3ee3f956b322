"use strict";
// Model output reaches the page only through textContent: nothing here may ever build HTML from a string.

const PAGE_SIZE = 20;
const darkMode = matchMedia("(prefers-color-scheme: dark)");

function readJson(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Charts: Python made the figures, the page adds the colours of its theme.

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const axis = {
    gridcolor: color("--grid"),
    linecolor: color("--line"),
    tickcolor: color("--line"),
    spikecolor: color("--muted"),
    spikethickness: -1, // one pixel; the sign leaves out the white outline
    automargin: true,
  };
  const family = getComputedStyle(document.body).fontFamily;
  const result = {
    ...layout,
    paper_bgcolor: color("--card"), // not transparent, for the sake of saved images
    plot_bgcolor: color("--card"),
    font: { family, size: 12, color: color("--muted") },
    hoverlabel: {
      bgcolor: color("--card"),
      bordercolor: color("--line"),
      font: { family, size: 12, color: color("--text") },
      namelength: -1,
    },
  };
  for (const name of ["xaxis", "yaxis", "yaxis2"]) {
    if (!layout[name]) continue;
    const title = { ...layout[name].title, standoff: name === "xaxis" ? 6 : 12, font: { size: 12 } };
    result[name] = { ...axis, ...layout[name], title };
  }
  result.xaxis.showline = true;
  return result;
}

function drawCharts() {
  const figures = readJson("figure-data");
  const plots = document.querySelectorAll(".plot");
  const options = { responsive: true, displayModeBar: false };
  const draw = () => figures.forEach((figure, i) => Plotly.react(plots[i], figure.data, themed(figure.layout), options));
  draw();
  darkMode.addEventListener("change", draw);
  document.querySelectorAll(".save").forEach((button, i) => {
    const image = { format: "png", scale: 2, filename: button.dataset.filename };
    button.addEventListener("click", () => Plotly.downloadImage(plots[i], image));
  });
}

// Sample browser.

function setOptions(select, all, values) {
  select.append(new Option(all, ""));
  for (const [value, count] of values) select.append(new Option(`${value} (${count})`, value));
}

function counted(samples, key) {
  const counts = new Map();
  for (const sample of samples) counts.set(String(sample[key]), (counts.get(String(sample[key])) ?? 0) + 1);
  return [...counts];
}

function facts(sample) {
  const row = element("div", "facts");
  const kind = String(sample.kind);
  const chip = element("span", "chip", kind.replaceAll("_", " "));
  chip.classList.add(kind.replace(/\W/g, "-"));
  row.append(chip);
  const length = sample.tokens ?? null;
  const parts = [
    `step ${sample.step}`,
    sample.split === "eval" ? "held-out" : `training, group ${sample.group}`,
    typeof sample.score === "number" ? `score ${Number(sample.score.toFixed(3))}` : null,
    length === null ? `${String(sample.completion).length} characters` : `${length} tokens`,
    sample.finish_reason ? `finish: ${sample.finish_reason}` : null,
    typeof sample.seconds === "number" ? `verdict in ${Number((1000 * sample.seconds).toPrecision(2))} ms` : null,
    sample.weight_version === undefined ? null : `weights v${sample.weight_version}`,
  ];
  for (const part of parts) if (part !== null) row.append(element("span", "", part));
  return row;
}

function labelled(label, text) {
  const block = element("div");
  block.append(element("h4", "", label), element("pre", "", text));
  return block;
}

function answer(label, value) {
  const block = element("div");
  block.append(element("span", "", `${label} `));
  block.append(value === null || value === undefined ? element("span", "", "none") : element("code", "", value));
  return block;
}

function card(sample) {
  const article = element("article", "sample");
  const texts = element("div", "texts");
  texts.append(labelled("Prompt", sample.prompt), labelled("Completion", sample.completion));
  const answers = element("div", "answers");
  answers.append(answer("Expected", sample.gold), answer("Extracted", sample.extracted));
  article.append(facts(sample), texts, answers);
  return article;
}

function browseSamples() {
  const form = document.getElementById("filters");
  if (!form) return;
  const samples = readJson("sample-data"); // newest first
  const { step, split, kind, order, text } = form.elements;
  setOptions(step, "all", counted(samples, "step"));
  setOptions(split, "all", counted(samples, "split"));
  setOptions(kind, "all", counted(samples, "kind"));
  const haystack = (s) => [s.prompt, s.completion, s.gold, s.extracted].join("\n").toLowerCase();
  let page = 0;

  function show() {
    const needle = text.value.toLowerCase();
    const found = samples.filter(
      (sample) =>
        [step, split, kind].every((field) => field.value === "" || String(sample[field.name]) === field.value) &&
        (needle === "" || haystack(sample).includes(needle)),
    );
    if (order.value === "oldest") found.reverse();
    const pages = Math.max(1, Math.ceil(found.length / PAGE_SIZE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const cards = found.slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE).map(card);
    if (!cards.length) cards.push(element("p", "empty", "No sample fits these filters."));
    document.getElementById("sample-list").replaceChildren(...cards);
    document.querySelector("#samples .count").textContent = `${found.length.toLocaleString("en")} found`;
    for (const label of document.querySelectorAll("#samples .page")) label.textContent = `page ${page + 1} of ${pages}`;
    for (const button of document.querySelectorAll("#samples [data-go]")) {
      button.disabled = button.dataset.go === "1" ? page === pages - 1 : page === 0;
    }
  }

  form.addEventListener("input", () => ((page = 0), show()));
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("#samples [data-go]")) {
    button.addEventListener("click", () => {
      page += Number(button.dataset.go);
      show();
      document.getElementById("samples").scrollIntoView();
    });
  }
  show();
}

drawCharts();
browseSamples();
