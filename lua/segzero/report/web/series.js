/* series.js - the data of the page: numbers of the runs by name, smoothing, and small helpers.
 *
 * report.runs[r].series[name] = {steps: [..], values: [..]}, without unknown values. Names are those
 * of metrics.jsonl ("reward", "reward/iou", "time/forward"); "spread/..." comes from the answers and
 * "held_out/..." from the evaluations. Every text is put into the page as text, never as HTML.
 */
const report = JSON.parse(document.getElementById("data").textContent);

/* An element of HTML. attributes: an object or null; children: texts and elements. */
function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/* The same of SVG. */
function drawn(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function colourOf(run) { return `var(--run${run % 12})`; }

/* A number in few digits, as text. */
function short(v) {
  if (v === null || v === undefined) return "";
  const size = Math.abs(v);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return v.toExponential(2).replace(/\.?0+e/, "e");
  if (size >= 100) return v.toFixed(size >= 1000 ? 0 : 1).replace(/\.0$/, "");
  return String(Number(v.toFixed(size >= 10 ? 2 : 4)));
}

/* The columns of one table as series, added under a prefix. */
function addSeries(series, table, prefix) {
  const lists = table.columns.map(() => ({ steps: [], values: [] }));
  for (const row of table.rows) {
    for (let i = 1; i < row.length; i++) {
      if (row[i] === null) continue;
      lists[i].steps.push(row[0]);
      lists[i].values.push(row[i]);
    }
  }
  table.columns.forEach((name, i) => {
    if (i > 0 && lists[i].steps.length > 0) series[prefix + name] = lists[i];
  });
}

for (const run of report.runs) {
  run.series = Object.create(null);
  addSeries(run.series, run.metrics, "");
  addSeries(run.series, run.spread, "spread/");
  addSeries(run.series, run.held_out, "held_out/");
  run.answerSteps = Object.keys(run.answers).map(Number).sort((a, b) => a - b);
}

/* Exponential smoothing without the pull to 0 at the start. weight: 0 (none) to below 1. */
function smoothed(values, weight) {
  const out = new Array(values.length);
  let sum = 0;
  let norm = 0;
  values.forEach((v, i) => {
    sum = weight * sum + (1 - weight) * v;
    norm = weight * norm + (1 - weight);
    out[i] = sum / norm;
  });
  return out;
}

/* The place in an ascending list whose entry is nearest to x; -1 for an empty list. */
function nearest(list, x) {
  let low = 0;
  let high = list.length - 1;
  if (high < 0) return -1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (list[middle] > x) high = middle; else low = middle;
  }
  return Math.abs(list[high] - x) < Math.abs(list[low] - x) ? high : low;
}

/* Wilson's 95 % interval of a share p of n rows. */
function wilson(p, n) {
  const z = 1.96;
  const middle = (p + z * z / (2 * n)) / (1 + z * z / n);
  const half = z * Math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n);
  return [middle - half, middle + half];
}

/* All names that any run has, in order. */
function allNames() {
  const names = new Set();
  for (const run of report.runs) Object.keys(run.series).forEach((name) => names.add(name));
  return [...names].sort();
}
