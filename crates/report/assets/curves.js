"use strict";
// Learning curves: one chart for each stage, of the numbers that belong together.

const FAMILIES = [
  { name: "Loss", metrics: ["loss", "eval_loss", "loss/policy_avg", "loss/value_avg"] },
  { name: "Accuracy", unit: "share", metrics: ["mean_token_accuracy", "eval_mean_token_accuracy", "accuracy", "eval_accuracy", "eval/accuracy", "eval/win_rate"] },
  { name: "Score", metrics: ["objective/scores", "eval/score", "margin", "eval_margin"] },
  { name: "Score against KL", against: [["objective/kl", "objective/scores"], ["eval/kl", "eval/score"]] },
  { name: "Learning rate", metrics: ["learning_rate"] },
  { name: "Gradient norm", metrics: ["grad_norm", "policy/grad_norm", "val/grad_norm"] },
  { name: "Tokens per second", metrics: ["tokens_per_second"] },
  { name: "Memory", unit: "bytes", metrics: ["memory_bytes"] },
];
const COLOURS = ["var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)", "var(--c7)", "var(--c8)"];
const HELD_OUT = /^eval/;

function seriesOf(run, metric) {
  return run.series.find((series) => series.metric === metric && series.points.length);
}

/** In what a metric of a run is counted: a reward model's loss is over pairs. */
function unitIn(run, metric) {
  const unit = meaningOf(metric)?.unit ?? "";
  return run.family === "feedback" ? unit.replace("per token", "per pair") : unit;
}

/** The curves of one run in one family, as points with their names. */
function curvesOf(run, family) {
  const unit = (metric) => family.unit ?? unitIn(run, metric);
  const label = (metric) => (several ? `${titleOf(metric)}, ${run.pipeline}` : titleOf(metric));
  const found = [];
  for (const metric of family.metrics ?? []) {
    const series = seriesOf(run, metric);
    if (series) found.push({ metric, unit: unit(metric), label: label(metric), held: HELD_OUT.test(metric), series, points: series.points.map(([x, y]) => ({ x, y })) });
  }
  for (const [across, up] of family.against ?? []) {
    const [xs, ys] = [seriesOf(run, across), seriesOf(run, up)];
    if (!xs || !ys) continue;
    const by = new Map(xs.points);
    const points = ys.points.filter(([step]) => by.has(step)).map(([step, y]) => ({ x: by.get(step), y, step }));
    if (points.length) found.push({ metric: up, unit: unit(up), label: label(up), held: HELD_OUT.test(up), series: ys, points });
  }
  return found;
}

/** Runs of one name, of all pipelines: their curves lie over each other. */
function groups() {
  const byName = new Map();
  for (const run of report.runs) {
    if (run.series.length) byName.set(run.name, [...(byName.get(run.name) ?? []), run]);
  }
  return [...byName];
}

function curveTip(curve, point, family) {
  const { unit } = curve;
  const words = unit && !["share", "count", "bytes", "seconds"].includes(unit) ? ` ${unit}` : "";
  const at = family.against ? `KL ${plain(point.x)} nats\nstep ${plain(point.step)}` : `step ${plain(point.x)}`;
  return `${curve.label}\n${at}\n${inUnit(point.y, unit)}${words}`;
}

/** A number on an axis. */
function tick(value) {
  const size = Math.abs(value);
  if (size >= 1e4) return signed(d3.format("~s")(value));
  return signed(size > 0 && size < 1e-3 ? d3.format("~e")(value) : d3.format("~r")(Number(value.toPrecision(6))));
}

function yAxis(curves, family) {
  const { unit } = curves[0];
  const format = unit === "share" ? (v) => `${Math.round(v * 1000) / 10}%`
    : unit === "bytes" ? (v) => bytes(v) : (v) => tick(v);
  const words = { share: "per cent", bytes: "bytes", count: "", seconds: "seconds" }[unit] ?? unit;
  const name = family.against ? "score" : family.name.toLowerCase();
  return { label: words && words !== name ? `\u2191 ${name} (${words})` : `\u2191 ${name}`, format };
}

function chart(name, curves, family, width) {
  const all = curves.flatMap((curve, at) => curve.points.map((point) => ({ ...point, curve, colour: COLOURS[at % COLOURS.length] })));
  const y = yAxis(curves, family);
  const channels = { x: "x", y: "y" };
  const lines = curves.map((curve, at) => Plot.lineY(curve.points, {
    ...channels, stroke: COLOURS[at % COLOURS.length], strokeWidth: curve.held ? 2 : 1.5, className: "curve" }));
  const dots = curves.map((curve, at) => (curve.held || family.against || curve.points.length < 3) && Plot.dot(curve.points, {
    ...channels, r: 3, fill: COLOURS[at % COLOURS.length], className: "points-of" }));
  const tip = (d) => curveTip(d.curve, d, family);
  const figure = Plot.plot({
    width, height: 240, marginLeft: 62, marginRight: 14, marginTop: 26, marginBottom: 38,
    style: { background: "none", color: "inherit", fontFamily: "inherit", fontSize: "12px", overflow: "visible" },
    ariaLabel: `${family.name} of ${name}`, ariaDescription: curves.map((curve) => curve.label).join("; "),
    x: { label: family.against ? "KL (nats) \u2192" : "step \u2192", ticks: Math.max(3, Math.floor(width / 110)), tickFormat: family.against ? undefined : "~s", nice: Boolean(family.against) },
    y: { label: y.label, grid: true, nice: true, ticks: 5, tickFormat: y.format },
    marks: [
      ...lines, ...dots.filter(Boolean),
      Plot.dot(all, Plot.pointer({ ...channels, r: 4.5, fill: "colour", stroke: "var(--panel)", className: "pointed" })),
      Plot.tip(all, Plot.pointer({ ...channels, title: tip, fill: "var(--panel)", stroke: "var(--line)", fontSize: 12.5, className: "values" })),
    ],
    color: { type: "identity" },
  });
  walkable(figure, all, tip);
  return figure;
}

/** Makes a picture with a label of a chart; arrow keys go from point to point, as the pointer does. */
function walkable(figure, all, tip) {
  let at = -1;
  figure.setAttribute("role", "img");
  // The marks' own labels (line, dot, ...) say nothing that the chart's label does not.
  figure.querySelectorAll("[aria-label], [aria-description]").forEach((mark) => { mark.removeAttribute("aria-label"); mark.removeAttribute("aria-description"); });
  figure.setAttribute("tabindex", "0");
  figure.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, Home: -all.length, End: all.length }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    at = Math.max(0, Math.min(all.length - 1, at + by));
    const [box, point] = [figure.getBoundingClientRect(), all[at]];
    const place = { clientX: box.left + figure.scale("x").apply(point.x), clientY: box.top + figure.scale("y").apply(point.y) };
    figure.dispatchEvent(new PointerEvent("pointerenter", { pointerType: "mouse", ...place }));
    figure.dispatchEvent(new PointerEvent("pointermove", { pointerType: "mouse", ...place }));
    say(tip(point).replaceAll("\n", ", "));
  });
  figure.addEventListener("blur", () => figure.dispatchEvent(new PointerEvent("pointerleave", { pointerType: "mouse" })));
}

function legend(curves) {
  return el("ul", { class: "legend" }, curves.map((curve, at) => {
    const { logged, not_finite: gaps, points } = curve.series;
    const notes = [logged > points.length ? `${points.length} of ${count(logged)} points drawn` : null, gaps ? `${gaps} not finite, left out` : null].filter(Boolean);
    return el("li", {}, el("span", { class: `swatch${curve.held ? " held" : ""}`, style: `background:${COLOURS[at % COLOURS.length]}` }),
      term(curve.metric, curve.label), notes.length ? el("span", { class: "quiet" }, ` ${notes.join("; ")}`) : null);
  }));
}

/** The points as a table, made when it is opened. */
function pointTable(curves, family) {
  const details = el("details", { class: "points" }, el("summary", {}, "Values as a table"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.childElementCount > 1) return;
    for (const curve of curves) {
      const { unit } = curve;
      const heads = [family.against ? "KL" : "Step", { number: true, content: curve.label }];
      const rows = curve.points.map((point) => el("tr", {}, el("th", { scope: "row" }, plain(point.x)),
        el("td", { class: "number", title: whole(point.y) }, inUnit(point.y, unit))));
      details.append(scrolled(curve.label, table(curve.label, heads, rows)));
    }
  });
  return details;
}

function drawFamily(place, family) {
  place.replaceChildren();
  for (const [name, runs] of groups()) {
    const curves = runs.flatMap((run) => curvesOf(run, family));
    if (!curves.length) continue;
    const figure = el("figure", { class: "chart", "data-run": name }, el("figcaption", {}, name, runs.every((run) => run.finished) ? null : el("strong", { class: "warn" }, " unfinished")));
    place.append(figure);
    const width = Math.max(260, Math.min(640, figure.clientWidth - 24));
    figure.append(chart(name, curves, family, width), legend(curves), pointTable(curves, family));
  }
}

/** Every metric that no family has. */
function otherMetrics() {
  const known = new Set(FAMILIES.flatMap((family) => [...(family.metrics ?? []), ...(family.against ?? []).flat()]));
  const names = new Set(report.runs.flatMap((run) => run.series.map((series) => series.metric)));
  return [...names].filter((name) => !known.has(name)).sort();
}

function drawCurves() {
  const body = bodyOf("curves");
  if (!groups().length) {
    body.append(notice("None of these runs logged metrics."));
    return;
  }
  const there = FAMILIES.filter((family) => report.runs.some((run) => curvesOf(run, family).length));
  const place = el("div", { class: "charts" });
  let family = there[0] ?? { name: titleOf(otherMetrics()[0]), metrics: [otherMetrics()[0]] };
  const draw = () => drawFamily(place, family);
  const radios = there.map((one) => el("label", {}, el("input", { type: "radio", name: "family", value: one.name, checked: one === family,
    onchange: () => { family = one; other.querySelector("select").value = ""; draw(); } }), el("span", {}, one.name)));
  const names = otherMetrics();
  const other = menu("Other", [["", "\u2013"], ...names.map((name) => [name, titleOf(name)])], "", (name) => {
    if (!name) return;
    for (const radio of body.querySelectorAll("input[name=family]")) radio.checked = false;
    family = { name: titleOf(name), metrics: [name] };
    draw();
  });
  body.append(el("fieldset", { class: "choices" }, el("legend", {}, "Show"), radios, names.length ? other : null), place);
  body.append(el("p", { class: "quiet" }, "Long curves are thinned to what a chart can show; of each stretch the point that changes the picture most is kept (largest triangle, three buckets)."));
  draw();
  let width = place.clientWidth;
  window.addEventListener("resize", () => { if (place.clientWidth !== width) { width = place.clientWidth; draw(); } });
}
