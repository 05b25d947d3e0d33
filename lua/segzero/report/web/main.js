/* main.js - which charts there are, the two sliders, and drawing it all. */
const view = { smoothing: 0.8, step: last.step };

/* ---- which charts ---- */
const TITLES = {
  reward: report.runs.length > 1 ? "reward" : "reward (band: all answers)", length: "answer length, tokens",
  stopped: "share that ended by itself", kl: "KL to the reference",
  entropy: "entropy", clipped: "share of clipped tokens", grad_norm: "gradient norm",
  mismatch: "sampler-trainer difference", lr: "learning rate", loss: "loss",
  policy_loss: "policy loss", "seconds/total": "seconds a step", reward_kl: "KL in the reward",
  "spread/reward_std": "standard deviation of the rewards",
  "spread/no_signal": "share of prompts without a signal", skipped_updates: "skipped updates",
  reward_errors: "answers whose reward failed", "held_out/reward": "held-out reward",
  "held_out/giou": "held-out gIoU (dashed: ceiling)",
};
const SECTIONS = [
  { title: "Reward", match: (name) => /^(reward$|reward\/|reward_|spread\/)/.test(name) },
  { title: "Held-out rows", match: (name) => name.startsWith("held_out/") },
  { title: "Policy", match: (name) =>
    /^(length|stopped|kl|entropy|clipped|grad_norm|mismatch)$|^(actor|response_length|critic)/
      .test(name) },
  { title: "Time and memory", match: (name) =>
    /^seconds\/total$|memory|^perf|tokens_per_second|mfu/.test(name) },
  { title: "Other", match: () => true },
];
const HIDDEN = /^time\/|^machine\/clock$|^seconds\/(?!total$)|^spread\/reward_(min|max|mean)$|^held_out\/ceiling_giou$/;
/* Of all answers: metrics.jsonl has them too, and rollouts.jsonl said them first. */
const TWICE = /^reward_(min|max|std)$/;
const ORDER = ["reward", "held_out/reward", "held_out/giou", "length", "kl", "entropy", "grad_norm"];

function titleOf(name) {
  if (TITLES[name]) return TITLES[name];
  if (name.startsWith("held_out/parts/")) return `held-out ${name.slice(15)}`;
  if (name.startsWith("reward/")) return `part: ${name.slice(7)}`;
  return name;
}

function sortedNames() {
  const rank = (name) => (ORDER.indexOf(name) + 1 || ORDER.length + 1);
  const names = allNames();
  const isTwice = (name) => TWICE.test(name) && names.includes("spread/reward_std");
  return names.filter((name) => !HIDDEN.test(name) && !isTwice(name))
    .sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1));
}

/* The lowest and highest answer of each step, where every step has them. */
function bandOf(run, series) {
  if (report.runs.length > 1) return {};
  const low = run.series["spread/reward_min"];
  const high = run.series["spread/reward_max"];
  if (!low || low.steps.length !== series.steps.length) return {};
  if (low.steps.some((step, i) => step !== series.steps[i])) return {};
  return { low: low.values, high: high.values };
}

/* The interval of a share of rows, where the number of rows is known. */
function whiskersOf(run, name, series) {
  if (!run.held_out_rows || !name.startsWith("held_out/parts/")) return {};
  const both = series.values.map((v) => wilson(v, run.held_out_rows));
  return { low: both.map((pair) => pair[0]), high: both.map((pair) => pair[1]) };
}

function lineOf(run, r, name) {
  const series = run.series[name];
  const line = { ...series, colour: colourOf(r), label: report.runs.length > 1 ? run.head.name : "" };
  if (name === "reward") Object.assign(line, bandOf(run, series));
  if (name.startsWith("held_out/")) {
    Object.assign(line, { dots: true }, whiskersOf(run, name, series));
  }
  return line;
}

function linesOf(name) {
  const lines = [];
  report.runs.forEach((run, r) => {
    if (run.series[name]) lines.push(lineOf(run, r, name));
    const ceiling = run.series["held_out/ceiling_giou"];
    if (name === "held_out/giou" && ceiling) {
      lines.push({ ...ceiling, colour: colourOf(r), limit: true, label: "ceiling" });
    }
  });
  return lines;
}

const FROM_ZERO = /skipped|errors|^time|^seconds|grad_norm|stopped|clipped|no_signal|^reward\/|parts\//;

function addCharts() {
  const body = document.getElementById("curves");
  const names = sortedNames();
  for (const section of SECTIONS) {
    const own = names.filter(section.match);
    own.forEach((name) => names.splice(names.indexOf(name), 1));
    const frames = own.map((name) =>
      newChart(titleOf(name), linesOf(name), { zero: FROM_ZERO.test(name) }).frame);
    if (section.title === "Time and memory") {
      for (const run of report.runs) {
        const title = report.runs.length > 1 ? `time by phase: ${run.head.name}` : "time by phase";
        const chart = newTimeChart(run, title);
        if (chart) frames.push(chart);
      }
    }
    if (frames.length > 0) {
      body.append(element("h2", null, section.title), element("div", { class: "grid" }, ...frames));
    }
  }
}

/* ---- the sliders ---- */
function setStep(step) {
  view.step = Math.min(last.step, Math.max(first.step, step));
  document.getElementById("step").value = view.step;
  document.getElementById("step-value").textContent = `${view.step} of ${last.step}`;
  charts.forEach(moveChosen);
  drawAnswers();
}

function setSmoothing(weight) {
  view.smoothing = weight;
  document.getElementById("smoothing-value").textContent = weight.toFixed(2);
  charts.forEach(drawChart);
}

function connect() {
  const step = document.getElementById("step");
  step.min = first.step;
  step.max = last.step;
  step.addEventListener("input", () => setStep(Number(step.value)));
  const smoothing = document.getElementById("smoothing");
  smoothing.addEventListener("input", () => setSmoothing(Number(smoothing.value)));
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    charts.forEach(drawChart);
  });
}

/* ---- the page ---- */
function drawHead() {
  const names = report.runs.map((run) => run.head.name).join(", ");
  document.getElementById("title").textContent = names;
  document.title = `${names} - segzero report`;
  let text = `Written ${report.made} by segzero.`;
  if (report.state === "running") {
    text += " The run was going on then: load the page again for what is new.";
  }
  document.getElementById("state").textContent = text;
  const notes = report.runs.flatMap((run) => run.notes);
  document.getElementById("notes").append(...notes.map((note) => element("li", null, note)));
  drawGlance();
}

drawHead();
addCharts();
connect();
introduceAnswers();
setSmoothing(view.smoothing);
setStep(view.step);
drawSettings();
