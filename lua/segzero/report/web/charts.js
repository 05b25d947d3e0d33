/* charts.js - charts in SVG: lines of several runs with smoothing, bands, whiskers and a tooltip,
 * and the stacked shares of the time. All charts share the crosshair and the chosen step.
 */
const charts = [];
const HEIGHT = 170;
const MARGIN = { left: 46, right: 8, top: 8, bottom: 20 };

/* Round numbers between low and high, about `count` of them. */
function ticks(low, high, count) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough);
  const list = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) {
    list.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  }
  return list;
}

/* Calls visit(value) for all numbers that belong on the y axis. */
function eachNumber(chart, visit) {
  for (const line of chart.lines) {
    line.values.forEach(visit);
    (line.low || []).forEach(visit);
    (line.high || []).forEach(visit);
  }
}

/* The ranges of both axes. */
function extent(chart) {
  let low = Infinity;
  let high = -Infinity;
  eachNumber(chart, (v) => { low = Math.min(low, v); high = Math.max(high, v); });
  if (chart.zero) low = Math.min(low, 0);
  if (low === high) {
    const room = Math.abs(low) * 0.1 || 0.5;
    low -= chart.zero && low === 0 ? 0 : room;
    high += room;
  }
  const pad = (high - low) * 0.04;
  const bottom = chart.zero && low >= 0 ? low : low - pad;
  return { x0: first.step, x1: Math.max(last.step, first.step + 1), y0: bottom, y1: high + pad };
}

/* The steps that any run has. */
const first = { step: Infinity };
const last = { step: 0 };
for (const run of report.runs) {
  for (const list of Object.values(run.series)) {
    first.step = Math.min(first.step, list.steps[0]);
    last.step = Math.max(last.step, list.steps[list.steps.length - 1]);
  }
}
if (first.step === Infinity) first.step = 0;

function scales(chart, width) {
  const e = extent(chart);
  const inner = width - MARGIN.left - MARGIN.right;
  const tall = HEIGHT - MARGIN.top - MARGIN.bottom;
  return {
    e,
    x: (step) => MARGIN.left + (step - e.x0) / (e.x1 - e.x0) * inner,
    y: (v) => MARGIN.top + (e.y1 - v) / (e.y1 - e.y0) * tall,
    step: (px) => e.x0 + (px - MARGIN.left) / inner * (e.x1 - e.x0),
  };
}

function pathOf(steps, values, s) {
  let d = "";
  for (let i = 0; i < steps.length; i++) {
    d += `${i ? "L" : "M"}${s.x(steps[i]).toFixed(1)} ${s.y(values[i]).toFixed(1)}`;
  }
  return d;
}

function drawAxes(svg, s, width) {
  const bottom = HEIGHT - MARGIN.bottom;
  for (const v of ticks(s.e.y0, s.e.y1, 4)) {
    svg.append(drawn("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right,
      y1: s.y(v), y2: s.y(v) }));
    svg.append(drawn("text", { x: MARGIN.left - 6, y: s.y(v) + 4, "text-anchor": "end" }, short(v)));
  }
  for (const v of ticks(s.e.x0, s.e.x1, width < 360 ? 4 : 6)) {
    if (v % 1 !== 0) continue;
    svg.append(drawn("text", { x: s.x(v), y: bottom + 15, "text-anchor": "middle" }, String(v)));
  }
}

function drawBand(svg, line, s) {
  const back = [...line.steps].reverse();
  const low = [...line.low].reverse();
  const d = `${pathOf(line.steps, line.high, s)}${pathOf(back, low, s).replace(/^M/, "L")}Z`;
  svg.append(drawn("path", { class: "band", d, fill: line.colour }));
}

/* Evaluations are few: dots, and a whisker where the interval is known. */
function drawDots(svg, line, s) {
  line.steps.forEach((step, i) => {
    const x = s.x(step);
    if (line.low) {
      const low = s.y(line.low[i]).toFixed(1);
      const high = s.y(line.high[i]).toFixed(1);
      svg.append(drawn("path", { class: "whisker", stroke: line.colour,
        d: `M${x - 4} ${low}h8m-4 0V${high}m-4 0h8` }));
    }
    svg.append(drawn("circle", { cx: x, cy: s.y(line.values[i]), r: 3.5, fill: line.colour }));
  });
}

function drawLine(svg, line, s, weight) {
  const stroke = line.colour;
  if (line.limit) {
    svg.append(drawn("path", { class: "limit", d: pathOf(line.steps, line.values, s), stroke }));
    return;
  }
  if (line.dots) {
    svg.append(drawn("path", { class: "smooth", d: pathOf(line.steps, line.values, s), stroke }));
    drawDots(svg, line, s);
    return;
  }
  if (line.low) drawBand(svg, line, s);
  if (weight > 0) {
    svg.append(drawn("path", { class: "raw", d: pathOf(line.steps, line.values, s), stroke }));
  }
  line.smooth = smoothed(line.values, weight);
  svg.append(drawn("path", { class: "smooth", d: pathOf(line.steps, line.smooth, s), stroke }));
  if (line.steps.length === 1) drawDots(svg, { ...line, low: null }, s);
}

function drawChart(chart) {
  const width = chart.svg.clientWidth || 320;
  chart.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  chart.svg.replaceChildren();
  const s = scales(chart, width);
  chart.scale = s;
  drawAxes(chart.svg, s, width);
  for (const line of chart.lines) drawLine(chart.svg, line, s, view.smoothing);
  const upright = { y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom };
  chart.chosen = drawn("line", { class: "chosen", ...upright });
  chart.cursor = drawn("line", { class: "cursor", visibility: "hidden", ...upright });
  chart.svg.append(chart.chosen, chart.cursor);
  moveChosen(chart);
}

function place(mark, x) {
  mark.setAttribute("x1", x);
  mark.setAttribute("x2", x);
}

function moveChosen(chart) {
  if (chart.chosen) place(chart.chosen, chart.scale.x(view.step));
}

/* ---- the tooltip ---- */
function tipText(chart, step) {
  const rows = [element("div", null, `step ${step}`)];
  for (const line of chart.lines) {
    const i = nearest(line.steps, step);
    if (i < 0) continue;
    let text = short(line.values[i]);
    if (line.low) text += ` [${short(line.low[i])}, ${short(line.high[i])}]`;
    if (line.smooth && view.smoothing > 0) text += ` (smooth ${short(line.smooth[i])})`;
    if (line.steps[i] !== step) text += ` at step ${line.steps[i]}`;
    rows.push(element("div", null,
      element("span", { class: "swatch", style: `background:${line.colour}` }),
      `${line.label ? line.label + " " : ""}${text}`));
  }
  return rows;
}

function showTip(chart, event) {
  const box = chart.svg.getBoundingClientRect();
  const px = event.clientX - box.left;
  const e = chart.scale.e;
  const step = Math.round(Math.min(e.x1, Math.max(e.x0, chart.scale.step(px))));
  for (const other of charts) {
    if (!other.cursor) continue;
    place(other.cursor, other.scale.x(step));
    other.cursor.setAttribute("visibility", "visible");
  }
  chart.tip.replaceChildren(...tipText(chart, step));
  chart.tip.hidden = false;
  const right = px > box.width / 2;
  chart.tip.style.left = right ? "auto" : `${px + 24}px`;
  chart.tip.style.right = right ? `${box.width - px + 24}px` : "auto";
  return step;
}

function hideTip(chart) {
  chart.tip.hidden = true;
  for (const other of charts) other.cursor && other.cursor.setAttribute("visibility", "hidden");
}

/* A chart in its frame. lines: {steps, values, low, high, colour, label, dots, limit}. */
function newChart(title, lines, options) {
  const svg = drawn("svg", { role: "img", "aria-label": title });
  const tip = element("div", { class: "tip" });
  tip.hidden = true;
  const frame = element("div", { class: "chart" }, element("h3", null, title), svg, tip);
  const chart = { svg, tip, lines, frame, ...options };
  svg.addEventListener("pointermove", (event) => showTip(chart, event));
  svg.addEventListener("pointerleave", () => hideTip(chart));
  svg.addEventListener("click", (event) => setStep(showTip(chart, event)));
  charts.push(chart);
  return chart;
}

/* ---- stacked shares of the time ---- */
const COLUMNS = 160;

/* Means over equal stretches of a list, at most COLUMNS of them. */
function condensed(values) {
  const size = Math.max(1, Math.ceil(values.length / COLUMNS));
  const out = [];
  for (let i = 0; i < values.length; i += size) {
    const part = values.slice(i, i + size);
    out.push(part.reduce((a, b) => a + b, 0) / part.length);
  }
  return out;
}

function phasesOf(run) {
  const names = Object.keys(run.series).filter((name) => name.startsWith("time/"));
  const phases = names.map((name) => {
    const values = condensed(run.series[name].values);
    return { name: name.slice(5), values, sum: values.reduce((a, b) => a + b, 0) };
  });
  return phases.filter((phase) => phase.sum > 0).sort((a, b) => b.sum - a.sum);
}

/* The shares of one run's phases as areas from 0 to 100 %, with a legend. */
function newTimeChart(run, title) {
  const phases = phasesOf(run);
  if (phases.length === 0) return null;
  const count = phases[0].values.length;
  const totals = Array.from({ length: count },
    (_, i) => phases.reduce((sum, p) => sum + (p.values[i] || 0), 0) || 1);
  const all = totals.reduce((a, b) => a + b, 0);
  const svg = drawn("svg", { viewBox: `0 0 ${Math.max(1, count - 1)} 100`,
    preserveAspectRatio: "none", role: "img", "aria-label": title });
  const legend = element("div", { class: "legend" });
  let below = new Array(count).fill(0);
  phases.forEach((phase, k) => {
    const above = below.map((b, i) => b + 100 * (phase.values[i] || 0) / totals[i]);
    const upper = above.map((v, i) => `${i} ${100 - v}`);
    const lower = below.map((v, i) => `${i} ${100 - v}`).reverse();
    if (count === 1) { upper.push(`1 ${100 - above[0]}`); lower.unshift(`1 ${100 - below[0]}`); }
    svg.append(drawn("path", { d: `M${upper.concat(lower).join("L")}Z`, fill: colourOf(k) }));
    legend.append(element("span", null,
      element("span", { class: "swatch", style: `background:${colourOf(k)}` }),
      `${phase.name} ${(100 * phase.sum / all).toFixed(0)} %`));
    below = above;
  });
  return element("div", { class: "chart" }, element("h3", null, title), svg, legend);
}
