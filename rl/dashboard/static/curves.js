// From bins to lines. A bin holds mean, least, largest and number of the values in it; NaN where it has none.

/** Positions of the bins: the last step that each can hold, so that bins of one step are exact. */
export function positions(grid) {
  const last = grid.whole ? 1 : 0;
  return Array.from({ length: grid.number }, (_, i) => grid.start + (i + 1) * grid.width - last);
}

/** The line without smoothing: in every bin the value furthest from its mean, so that no spike is lost. */
export function raw({ mean, low, high }) {
  return Array.from(mean, (m, i) => (m !== m ? null : high[i] - m > m - low[i] ? high[i] : low[i]));
}

/** Exponential moving average with weight `keep` of the past, one decay per value and no pull to the first. */
export function smoothed({ mean, number }, keep) {
  let total = 0;
  let weight = 0;
  return Array.from(mean, (m, i) => {
    if (m !== m) return null;
    const kept = keep ** number[i];
    total = kept * total + (1 - kept) * m;
    weight = kept * weight + (1 - kept);
    return total / weight;
  });
}

/** Fills what lies between known values by straight lines; before the first and after the last stays null. */
export function filled(line) {
  const full = line.slice();
  let before = -1;
  for (let i = 0; i < line.length; i++) {
    if (line[i] === null) continue;
    if (before >= 0) {
      for (let j = before + 1; j < i; j++) {
        full[j] = line[before] + ((line[i] - line[before]) * (j - before)) / (i - before);
      }
    }
    before = i;
  }
  return full;
}

// Student's t at 97.5 %, by degrees of freedom 1..30; 1.96 beyond.
const T975 = [
  12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131, 2.12, 2.11,
  2.101, 2.093, 2.086, 2.08, 2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/** Mean over runs in each bin, with a band: "range" least to largest, "interval" the mean's 95 % by Student's t. */
export function grouped(lines, band) {
  const full = lines.map(filled);
  const out = { mean: [], low: [], high: [] };
  for (let i = 0; i < full[0].length; i++) {
    const values = full.map((line) => line[i]).filter((value) => value !== null);
    const n = values.length;
    const mean = n ? values.reduce((a, b) => a + b, 0) / n : null;
    let [low, high] = [null, null];
    if (n && band === "range") [low, high] = [Math.min(...values), Math.max(...values)];
    if (n > 1 && band === "interval") {
      const spread = Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / (n - 1));
      const half = ((T975[n - 2] ?? 1.96) * spread) / Math.sqrt(n);
      [low, high] = [mean - half, mean + half];
    }
    out.mean.push(mean);
    out.low.push(low);
    out.high.push(high);
  }
  return out;
}
