/* settings.js - the settings of the runs side by side, what changed where a run went on, and the
 * table at the top of the page.
 */

function changesOf(run) {
  if (run.changes.length === 0) return null;
  const body = element("tbody");
  for (const change of run.changes) {
    body.append(element("tr", null, element("td", null, String(change.step)),
      element("td", null, change.key), element("td", null, change.old),
      element("td", null, change.new)));
  }
  const head = element("tr", null, ...["at step", "setting", "before", "after"].map(
    (text) => element("th", null, text)));
  return element("div", { class: "scroll" },
    element("h3", null, `${run.head.name}: changed where it went on`),
    element("table", null, element("thead", null, head), body));
}

function valueOf(run, key) {
  return Object.hasOwn(run.head.settings, key) ? run.head.settings[key] : "";
}

function differs(key) {
  return report.runs.some((run) => valueOf(run, key) !== valueOf(report.runs[0], key));
}

/* rows: the keys to show. */
function settingsTable(keys) {
  const names = report.runs.map((run) => element("th", null, run.head.name));
  const body = element("tbody");
  for (const key of keys) {
    const cells = report.runs.map((run) => element("td", null, valueOf(run, key)));
    const marked = report.runs.length > 1 && differs(key);
    body.append(element("tr", marked ? { class: "differs" } : null, element("td", null, key),
      ...cells));
  }
  return element("table", null,
    element("thead", null, element("tr", null, element("th", null, "setting"), ...names)), body);
}

function drawSettings() {
  const body = document.getElementById("settings-body");
  const keys = [...new Set(report.runs.flatMap((run) => Object.keys(run.head.settings)))].sort();
  const different = keys.filter(differs);
  body.append(...report.runs.map(changesOf).filter(Boolean));
  if (report.runs.length > 1) {
    body.append(element("h3", null, "what differs"),
      element("div", { class: "scroll" }, settingsTable(different)));
  }
  body.append(element("details", null, element("summary", null, `all ${keys.length} settings`),
    element("div", { class: "scroll" }, settingsTable(keys))));
}

/* ---- the table at the top ---- */
function ends(series) {
  if (!series) return "";
  const n = series.values.length;
  if (n === 1) return short(series.values[0]);
  return `${short(series.values[0])} \u2192 ${short(series.values[n - 1])}`;
}

/* Means of the first and of the last tenth. */
function tenths(series) {
  if (!series) return "";
  const n = Math.max(1, Math.floor(series.values.length / 10));
  const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
  return `${short(mean(series.values.slice(0, n)))} \u2192 ${short(mean(series.values.slice(-n)))}`;
}

function glanceRow(run, r) {
  const total = run.head.total ? ` of ${run.head.total}` : "";
  const time = run.series["seconds/total"];
  const seconds = time && time.values.reduce((a, b) => a + b, 0);
  return element("tr", null,
    element("td", null, element("span", { class: "swatch", style: `background:${colourOf(r)}` }),
      run.head.name),
    element("td", null, `${run.head.last || 0}${total}`),
    element("td", null, tenths(run.series.reward)),
    element("td", null, ends(run.series["held_out/reward"])),
    element("td", null, ends(run.series["held_out/giou"])),
    element("td", null, time ? short(seconds / time.values.length) : ""));
}

function drawGlance() {
  const titles = ["run", "steps", "reward, first and last tenth", "held-out reward",
    "held-out gIoU", "seconds a step"];
  const head = element("tr", null, ...titles.map((text) => element("th", null, text)));
  document.getElementById("glance").append(element("table", null, element("thead", null, head),
    element("tbody", null, ...report.runs.map(glanceRow))));
}
