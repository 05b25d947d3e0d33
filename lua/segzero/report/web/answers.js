/* answers.js - the answers of one step as cards: image with boxes and points, thinking, answer, parts
 * of the reward and why a part is 0.
 */

/* ---- the image ---- */
function addMarks(svg, marks, kind) {
  for (const [x0, y0, x1, y1] of marks.boxes || []) {
    const box = { x: Math.min(x0, x1), y: Math.min(y0, y1), width: Math.abs(x1 - x0),
      height: Math.abs(y1 - y0) };
    if (kind === "found") svg.append(drawn("rect", { ...box, class: "rim" }));
    svg.append(drawn("rect", { ...box, class: kind }));
  }
  for (const [x, y] of marks.points || []) {
    /* A line without length and with round ends is a dot that no stretching deforms. */
    const dot = { x1: x, y1: y, x2: x, y2: y };
    svg.append(drawn("line", { ...dot, class: "rim" }), drawn("line", { ...dot, class: kind }));
  }
}

function figureOf(answer, url) {
  const [width, height] = answer.frame;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": "true and answered boxes" });
  addMarks(svg, answer.truth || {}, "true");
  addMarks(svg, answer.found || {}, "found");
  const figure = element("div", { class: "figure" });
  if (url && url.startsWith("data:image/png;base64,")) {
    svg.setAttribute("preserveAspectRatio", "none");
    figure.append(element("img", { src: url, alt: answer.problem || "" }));
    figure.append(svg);
    if (answer.guessed) svg.remove();
  } else if (hasMarks(answer.truth) || hasMarks(answer.found)) {
    figure.append(svg);
  }
  return figure;
}

function hasMarks(marks) { return Boolean(marks && (marks.boxes || marks.points)); }

/* ---- the words ---- */
/* The thinking and the answer of a text; the whole text if it has neither. */
function split(text) {
  const think = /<think>([\s\S]*?)<\/think>/.exec(text);
  const answer = /<answer>([\s\S]*?)<\/answer>/.exec(text);
  return { think: think && think[1].trim(), answer: answer && answer[1].trim() };
}

function partsOf(answer) {
  const names = Object.keys(answer.parts || {}).sort();
  if (names.length === 0) return null;
  const body = element("tbody");
  for (const name of names) {
    const value = answer.parts[name];
    const why = (answer.zeros || {})[name] || "";
    const row = element("tr", null, element("td", null, name),
      element("td", value === 0 ? { class: "zero" } : null, short(value)), element("td", null, why));
    body.append(row);
  }
  return element("table", { class: "parts" }, body);
}

function wordsOf(answer) {
  const found = split(answer.text || "");
  const nodes = [];
  if (found.think) nodes.push(element("div", { class: "text" }, found.think));
  if (found.answer) nodes.push(element("div", { class: "text answer" }, found.answer));
  const raw = element("details", null, element("summary", null, "the text as it was written"),
    element("pre", null, answer.text || ""));
  if (!found.think && !found.answer) raw.open = true;
  nodes.push(raw);
  return nodes;
}

function cardOf(answer, url) {
  const tags = answer.tags.map((tag) => element("span", { class: "tag" }, tag));
  let about = `row ${answer.row}, answer ${answer.answer}`;
  if (typeof answer.advantage === "number") about += `, advantage ${short(answer.advantage)}`;
  if (answer.finish && answer.finish !== "stop") about += `, ended by ${answer.finish}`;
  const group = (answer.group || []).map(short).join(", ");
  return element("article", { class: "card" },
    element("div", null, ...tags, element("strong", null, `reward ${short(answer.reward)}`)),
    element("p", { class: "problem" }, answer.problem || ""),
    figureOf(answer, url),
    answer.unread ? element("p", { class: "zero" }, `infer cannot read it: ${answer.unread}`) : null,
    partsOf(answer), ...wordsOf(answer),
    element("p", { class: "quiet" }, about),
    element("p", { class: "quiet" }, `rewards of this prompt's answers: ${group}`),
    element("p", { class: "quiet" }, `solution: ${answer.solution || "none"}`));
}

/* ---- one step ---- */
/* The kept step that is nearest to the chosen one; -1 if there is none. */
function answerStep(run, step) {
  const i = nearest(run.answerSteps, step);
  return i < 0 ? -1 : run.answerSteps[i];
}

function runAnswers(run, r) {
  const step = answerStep(run, view.step);
  if (step < 0) return [];
  const images = run.images[step] || {};
  const cards = run.answers[step].map((answer) => cardOf(answer,
    Object.hasOwn(images, answer.row) ? images[answer.row] : null));
  const heading = element("h3", null,
    element("span", { class: "swatch", style: `background:${colourOf(r)}` }),
    `${report.runs.length > 1 ? run.head.name + ", " : ""}step ${step}`);
  return [heading, element("div", { class: "cards" }, ...cards)];
}

function drawAnswers() {
  const body = document.getElementById("answers-body");
  body.replaceChildren(...report.runs.flatMap(runAnswers));
}

function introduceAnswers() {
  const intro = document.getElementById("answers-intro");
  const strides = report.runs.map((run) => run.head.stride);
  const some = report.runs.some((run) => run.answerSteps.length > 0);
  if (!some) {
    intro.textContent = "No answers have been written yet.";
    return;
  }
  let text = "Of each step: the answer with the highest reward, the one with the lowest, and the two "
    + "ends of the prompt whose answers differ most. Green is true, red is answered.";
  const most = Math.max(...strides);
  if (most > 1) text += ` To keep the page small, every ${most}th step is here.`;
  intro.textContent = text;
}
