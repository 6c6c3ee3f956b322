// What the server knows. Summaries of runs are kept here; curves come as float32 (see series.py).

export const known = { version: 0, runs: new Map(), docs: {}, advice: {} };

async function answer(response) {
  if (!response.ok) throw new Error(await response.text());
  return response;
}

export async function getJson(path, query) {
  return (await answer(await fetch(`${path}?${new URLSearchParams(query)}`))).json();
}

/** Takes in what changed; returns the ids of runs with news, or null if there are none. */
export async function refreshRuns() {
  let found = await getJson("/api/runs", { since: known.version });
  if (found.version < known.version) {
    known.runs.clear(); // another server, which has counted from its own beginning
    found = await getJson("/api/runs", { since: 0 });
  }
  const news = found.version !== known.version;
  known.version = found.version;
  for (const run of found.runs) known.runs.set(run.id, run);
  const ids = new Set(found.ids);
  for (const id of known.runs.keys()) if (!ids.has(id)) known.runs.delete(id);
  known.runs = new Map(found.ids.filter((id) => known.runs.has(id)).map((id) => [id, known.runs.get(id)]));
  Object.assign(known.docs, found.docs);
  known.advice = found.alerts;
  return news ? found.runs.map((run) => run.id) : null;
}

/** Curves: {grid, charts: Map(metric -> Map(run id -> {mean, low, high, number}))}. */
export async function getSeries(request) {
  const response = await answer(await fetch("/api/series", { method: "POST", body: JSON.stringify(request) }));
  const buffer = await response.arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const grid = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let offset = 4 + length;
  const take = () => {
    const part = new Float32Array(buffer, offset, grid.number);
    offset += part.byteLength;
    return part;
  };
  const charts = new Map();
  for (const { metric, runs } of grid.charts) {
    const curves = new Map();
    for (const i of runs) curves.set(request.runs[i], { mean: take(), low: take(), high: take(), number: take() });
    charts.set(metric, curves);
  }
  return { grid, charts };
}
