"use strict";
// What evaluate measured: values, intervals and differences; and what post-training and fine-tuning took and gave.

const KINDS = {
  perplexity: "Text is read, and each token counts as it surprises the model.",
  generation: "The model answers, always by its first choice, and the answers are compared by rule or with the right ones.",
  choice: "Of several answers the one counts as chosen that the model finds the most probable.",
  preference: "A reward model scores two answers, of which one is known to be better.",
  safety: "The model answers unsafe requests and harmless ones that look alike; rules tell harm and refusals.",
  score: "The model answers, and a reward model scores the answers.",
  divergence: "The model answers by chance, as it would, and the probabilities of its answers are compared with another model's.",
};
const UNITS = { share: "share", "nats-per-token": "nats per token", "bits-per-byte": "bits per byte", perplexity: "", nats: "nats", score: "", tokens: "tokens" };

/** A difference in its unit: of shares in percentage points. */
function change(value, unit) {
  const sign = value > 0 ? "+" : "";
  if (unit === "share") return `${sign}${signed((value * 100).toFixed(1))}`;
  return `${sign}${signed(String(Number(value.toPrecision(3))))}`;
}

function changeUnit(unit) {
  return unit === "share" ? "pp" : UNITS[unit];
}

/** Whether a difference is good, bad, or may be chance (its interval holds 0). */
function verdict(difference) {
  const { value, interval, better } = difference;
  if (better === "neither") return "plain";
  if (!interval || (interval[0] <= 0 && interval[1] >= 0)) return "unsure";
  return value > 0 === (better === "higher") ? "good" : "bad";
}

const VERDICTS = { good: "better", bad: "worse", unsure: "may be chance", plain: "" };

function modelName(evaluated, name) {
  return several ? `${evaluated.pipeline} / ${name}` : name;
}

function tests() {
  const all = new Map();
  for (const evaluated of report.evaluations) {
    for (const test of evaluated.results.tests) all.set(test.name, [...(all.get(test.name) ?? []), { evaluated, test }]);
  }
  return all;
}

function parentChange(evaluated, model, test, metric) {
  const parent = evaluated.results.models.find((one) => one.name === model)?.parent;
  return evaluated.results.differences.find((one) => one.model === model && one.from === parent && one.test === test && one.metric === metric);
}

function resultCell(evaluated, model, test, metric) {
  const found = evaluated.results.measurements.find((one) => one.model === model && one.test === test && one.metric === metric);
  if (!found) return el("td", { class: "number" }, "\u2013");
  const unit = UNITS[found.unit];
  const range = found.interval ? `${inUnit(found.interval[0], unit)} to ${inUnit(found.interval[1], unit)}`.replace(/\u202f%(?= to)/, "") : null;
  const difference = parentChange(evaluated, model, test, metric);
  const judged = difference ? verdict(difference) : null;
  return el("td", { class: "number result", title: `${whole(found.value)}, over ${found.items} items` },
    el("span", { class: "value" }, inUnit(found.value, unit)),
    range ? el("span", { class: "range" }, range) : null,
    difference ? el("span", { class: `change ${judged}` }, `${change(difference.value, found.unit)} ${changeUnit(found.unit)}`,
      VERDICTS[judged] ? el("span", { class: "unseen" }, ` ${VERDICTS[judged]}`) : null) : null);
}

function metricsOf(places, broken) {
  const names = places.flatMap(({ evaluated, test }) => evaluated.results.measurements
    .filter((one) => one.test === test.name && one.metric.includes("/") === broken).map((one) => one.metric));
  return [...new Set(names)];
}

function resultTable(name, places, metrics) {
  const heads = ["Model", ...metrics.map((metric) => ({ number: true, content: [term(metric, metricTitle(metric)), unitOf(places, name, metric)] }))];
  const took = (evaluated, model) => evaluated.results.measurements.some((one) => one.test === name && one.model === model.name);
  const rows = places.flatMap(({ evaluated }) => evaluated.results.models.filter((model) => took(evaluated, model)).map((model) => el("tr", {},
    el("th", { scope: "row" }, evaluated.makers[model.name] ? el("a", { href: `#${anchor("run", evaluated.makers[model.name])}` }, modelName(evaluated, model.name)) : modelName(evaluated, model.name),
      model.parent ? el("span", { class: "from" }, `from ${model.parent}`) : null),
    metrics.map((metric) => resultCell(evaluated, model.name, name, metric)))));
  return scrolled(`Results of ${name}`, table(`${name}: value, its 95 % interval, and the change from the model it came from`, heads, rows, { class: "results" }));
}

function metricTitle(metric) {
  const [base, ...rest] = metric.split("/");
  return meanings.has(metric) || !rest.length ? titleOf(metric) : `${titleOf(base)}: ${rest.join("/")}`;
}

function unitOf(places, test, metric) {
  for (const { evaluated } of places) {
    const found = evaluated.results.measurements.find((one) => one.test === test && one.metric === metric);
    if (found) return UNITS[found.unit] && found.unit !== "share" ? el("span", { class: "unit" }, UNITS[found.unit]) : null;
  }
  return null;
}

/** Each model's change from its parent, with its interval. */
function liftChart(name, places, metric, width) {
  const rows = places.flatMap(({ evaluated }) => evaluated.results.models
    .map((model) => ({ model, found: parentChange(evaluated, model.name, name, metric) })).filter(({ found }) => found)
    .map(({ model, found }) => ({ label: `${modelName(evaluated, model.name)} from ${model.parent}`, found,
      value: found.unit === "share" ? found.value * 100 : found.value,
      low: (found.interval ?? [found.value, found.value])[0] * (found.unit === "share" ? 100 : 1),
      high: (found.interval ?? [found.value, found.value])[1] * (found.unit === "share" ? 100 : 1) })));
  if (!rows.length) return null;
  const colour = (row) => `var(--${verdict(row.found)})`;
  const unit = changeUnit(rows[0].found.unit);
  const range = (row) => (row.found.interval ? `\n95 %: ${change(row.found.interval[0], row.found.unit)} to ${change(row.found.interval[1], row.found.unit)}` : "");
  const tip = (row) => `${row.label}\n${change(row.found.value, row.found.unit)} ${unit}${range(row)}`;
  const ends = [0, ...rows.flatMap((row) => [row.value, row.low, row.high])];
  // Where nothing changed there is no stretch to draw on, and Plot would draw an interval over all of it.
  const domain = ends.every((end) => end === 0) ? [-1, 1] : undefined;
  const left = Math.min(width * 0.45, 30 + 6.6 * Math.max(...rows.map((row) => row.label.length)));
  const figure = Plot.plot({
    width, height: 62 + rows.length * 24, marginLeft: left, marginRight: 18, marginTop: 10, marginBottom: 40,
    style: { background: "none", color: "inherit", fontFamily: "inherit", fontSize: "12px", overflow: "visible" },
    ariaLabel: `Change in ${metricTitle(metric)} of ${name}`,
    x: { label: `change${unit ? ` (${unit === "pp" ? "percentage points" : unit})` : ""} \u2192`, domain, grid: true, nice: true, ticks: Math.max(3, Math.floor((width - left) / 70)), tickFormat: (v) => signed(String(v)) },
    y: { label: null, domain: rows.map((row) => row.label), tickFormat: (label) => (label.length * 6.6 > left ? `${label.slice(0, Math.floor(left / 6.8))}\u2026` : label) },
    color: { type: "identity" },
    marks: [
      Plot.ruleX([0], { stroke: "currentColor", strokeOpacity: 0.5 }),
      Plot.ruleY(rows, { y: "label", x1: "low", x2: "high", stroke: colour, strokeWidth: 2, className: "intervals" }),
      Plot.dot(rows, { y: "label", x: "value", r: 4.5, fill: colour, className: "changes" }),
      Plot.tip(rows, Plot.pointer({ y: "label", x: "value", title: tip, fill: "var(--panel)", stroke: "var(--line)", fontSize: 12.5, className: "values" })),
    ],
  });
  walkable(figure, rows.map((row) => ({ ...row, x: row.value, y: row.label })), tip);
  return el("figure", { class: "chart lift" }, el("figcaption", {}, `${metricTitle(metric)}: change from the parent`), figure);
}

/** What kind of test it is, in a word that explains itself. */
function kindOf({ kind }) {
  if (!KINDS[kind]) return kind;
  used.set(kind, KINDS[kind]);
  return explained(kind, KINDS[kind]);
}

function drawTest(name, places) {
  const metrics = metricsOf(places, false);
  const broken = metricsOf(places, true);
  const judged = metrics.filter((metric) => places.some(({ evaluated }) => evaluated.results.differences
    .some((one) => one.test === name && one.metric === metric && one.better !== "neither"))).slice(0, 2);
  const { test } = places[0];
  const charts = el("div", { class: "charts" });
  const section = el("section", { class: "test", id: anchor("test", name), "aria-label": name }, el("h3", {}, name),
    el("p", {}, test.about, " ", el("span", { class: "quiet" }, `${count(test.items)} items, by `, kindOf(test), ".")),
    resultTable(name, places, metrics), charts,
    broken.length ? el("details", {}, el("summary", {}, "By language and task"), resultTable(name, places, broken)) : null);
  bodyOf("results").append(section);
  const draw = () => {
    const width = Math.max(280, Math.min(620, charts.clientWidth > 900 ? charts.clientWidth / 2 - 40 : charts.clientWidth - 24));
    charts.replaceChildren(...judged.map((metric) => liftChart(name, places, metric, width)).filter(Boolean));
  };
  draw();
  let was = charts.clientWidth;
  window.addEventListener("resize", () => { if (charts.clientWidth !== was) { was = charts.clientWidth; draw(); } });
}

function drawResults() {
  const body = bodyOf("results");
  if (!report.evaluations.length) {
    body.append(notice("No run of evaluate is among these runs, so nothing is measured on the same items. What the stages themselves reported stands under each stage above."));
    return;
  }
  body.append(el("p", { class: "key" }, "Under a value stands its 95 % interval (bootstrap over items), then the change from the model it came from, on the same items: ",
    el("span", { class: "change good" }, "+ better"), " ", el("span", { class: "change bad" }, "\u2212 worse"), " ",
    el("span", { class: "change unsure" }, "may be chance"), ", where the interval of the change holds 0. pp: percentage points."));
  tests().forEach((places, name) => drawTest(name, places));
}

// --- what it took and what it gave

function gains(run, wanted) {
  const lines = report.evaluations.flatMap((evaluated) => Object.entries(evaluated.makers).filter(([, maker]) => maker === run.id)
    .flatMap(([model]) => evaluated.results.differences
      .filter((one) => one.model === model && !one.metric.includes("/") && verdict(one) === wanted
        && one.from === evaluated.results.models.find((other) => other.name === model)?.parent)));
  if (!lines.length) return el("td", {}, "\u2013");
  return el("td", {}, el("ul", { class: "gains" }, lines.map((one) => el("li", {}, el("a", { href: `#${anchor("test", one.test)}` }, one.test), " ",
    term(one.metric, metricTitle(one.metric)), " ", el("span", { class: `change ${wanted}` }, `${change(one.value, one.unit)} ${changeUnit(one.unit)}`)))));
}

function dataOf(run) {
  const rows = (wanted) => run.inputs.filter((input) => input.rows !== null && input.roles.some((role) => wanted.test(role)));
  // What is trained on; of a stage that trains on its own answers the prompts.
  const trained = rows(/train|revisions|helpful|ptx/);
  const read = trained.length ? trained : rows(/prompts/);
  return el("td", {}, trainedOn(run.facts), read.length ? el("span", { class: "range" }, read.map((input) => `${count(input.rows)} rows of ${input.path.split("/").slice(-2).join("/")}`).join("; ")) : null);
}

function drawCompare() {
  const body = bodyOf("compare");
  const wanted = ["pre-training", "post-training", "fine-tuning"];
  const runs = wanted.flatMap((family) => report.runs.filter((run) => run.family === family));
  if (!runs.some((run) => run.family !== "pre-training")) {
    body.append(notice("Neither a stage of post-training nor one of fine-tuning is among these runs."));
    return;
  }
  const heads = ["Stage", "From", "Data", { number: true, content: term("trainable_parameters") }, { number: true, content: term("seconds") },
    { number: true, content: term("peak_memory_bytes") }, "Improved", "Forgotten"];
  const rows = runs.map((run) => {
    const { parameters, trainable_parameters: part, seconds, peak_memory_bytes: memory } = run.facts;
    const from = run.inputs.find((input) => input.roles.includes("model"));
    const trained = part ?? parameters;
    return el("tr", { "data-family": run.family },
      el("th", { scope: "row" }, el("a", { href: `#${anchor("run", run.id)}` }, runName(run)), el("span", { class: "from" }, run.family)),
      el("td", {}, from ? (from.from ? runLink(from.from) : el("code", {}, from.path)) : "nothing"),
      dataOf(run),
      el("td", { class: "number", title: trained === null ? null : whole(trained) }, inUnit(trained, "count"),
        part !== null && parameters ? el("span", { class: "range" }, `${((100 * part) / parameters).toPrecision(2)}\u202f% of all`) : null),
      el("td", { class: "number" }, inUnit(seconds, "seconds")),
      el("td", { class: "number" }, inUnit(memory, "bytes")),
      gains(run, "good"), gains(run, "bad"));
  });
  body.append(scrolled("Post-training and fine-tuning compared", table("What each stage took and gave", heads, rows, { class: "results", id: "compare-table" })),
    el("p", { class: "quiet" }, report.evaluations.length
      ? "Improved and forgotten: changes from the model it came from whose 95 % interval does not hold 0, in the tests above."
      : "What was improved and forgotten is measured by evaluate, of which no run is here."));
}
