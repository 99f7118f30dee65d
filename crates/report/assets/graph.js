"use strict";
// The stages as a graph, and as a table.

const NODE = { width: 176, height: 74 };
const FILES = { width: 132, height: 34 };

/** What a stage's node says under its name. */
function nodeLines(run) {
  const facts = run.facts;
  if (!run.finished) return ["unfinished", facts.steps ? `${count(facts.steps)} steps so far` : "no steps yet"];
  const size = facts.trainable_parameters ? `${count(facts.trainable_parameters)} of ${count(facts.parameters)} trained`
    : facts.parameters ? `${count(facts.parameters)} parameters` : `${bytes(facts.bytes ?? 0)} written`;
  const memory = facts.peak_memory_bytes ? ` \u00b7 ${bytes(facts.peak_memory_bytes)}` : "";
  return [`${duration(facts.seconds)}${memory}`, size];
}

/** Files that no run on the page made, as one node a stage. */
function rawFiles(run) {
  const files = run.inputs.filter((input) => !input.from);
  if (!files.length) return null;
  const name = files[0].path.split("/").pop();
  return { label: files.length === 1 ? name : `${files.length} files`, title: files.map((file) => file.path).join("\n") };
}

function layout(runs, across) {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: across ? "LR" : "TB", nodesep: across ? 18 : 16, ranksep: across ? 44 : 36, marginx: 4, marginy: 4 });
  graph.setDefaultEdgeLabel(() => ({}));
  const add = (run, own) => graph.setNode(run.id, { ...NODE, run, own });
  for (const run of runs) add(run, true);
  for (const run of runs) {
    for (const input of run.inputs.filter((input) => input.from)) {
      if (!graph.hasNode(input.from)) add(runOf.get(input.from), false);
      const before = graph.edge(input.from, run.id);
      graph.setEdge(input.from, run.id, { roles: [...(before?.roles ?? []), ...input.roles] });
    }
    const files = rawFiles(run);
    if (files) {
      graph.setNode(`files ${run.id}`, { ...FILES, files });
      graph.setEdge(`files ${run.id}`, run.id, { roles: ["files"] });
    }
  }
  dagre.layout(graph);
  return graph;
}

function drawNode(parent, node) {
  const place = parent.append("g").attr("transform", `translate(${node.x - node.width / 2},${node.y - node.height / 2})`);
  if (node.files) {
    const box = place.attr("class", "files");
    box.append("rect").attr("width", node.width).attr("height", node.height).attr("rx", 17);
    const label = node.files.label;
    box.append("text").attr("x", node.width / 2).attr("y", 22).attr("text-anchor", "middle")
      .text(label.length > 18 ? `${label.slice(0, 17)}\u2026` : label);
    box.append("title").text(node.files.title);
    return;
  }
  const run = node.run;
  const [first, second] = nodeLines(run);
  const link = place.append("a").attr("href", `#${anchor("run", run.id)}`)
    .attr("class", `node ${run.family}${run.finished ? "" : " unfinished"}${node.own ? "" : " elsewhere"}`);
  link.append("rect").attr("class", "box").attr("width", node.width).attr("height", node.height).attr("rx", 8);
  link.append("rect").attr("class", "mark").attr("width", 5).attr("height", node.height - 16).attr("x", 8).attr("y", 8).attr("rx", 2.5);
  const name = node.own ? run.name : `${run.pipeline} / ${run.name}`;
  const lines = [[name.length > 20 ? `${name.slice(0, 19)}\u2026` : name, "name"], [first, ""], [second, ""]];
  lines.forEach(([text, kind], at) => link.append("text").attr("class", kind).attr("x", 22).attr("y", 23 + at * 19).text(`${text} `));
}

function drawGraph(runs, across) {
  const graph = layout(runs, across);
  // dagre's size is that of the nodes; arrows may bend around the outermost ones.
  const bends = graph.edges().flatMap((edge) => graph.edge(edge).points);
  const least = (axis) => Math.min(0, ...bends.map((point) => point[axis] - 2));
  const most = (axis, size) => Math.max(size, ...bends.map((point) => point[axis] + 2));
  const [left, top] = [least("x"), least("y")];
  const [width, height] = [most("x", graph.graph().width) - left, most("y", graph.graph().height) - top];
  const svg = d3.create("svg").attr("viewBox", `${left} ${top} ${width} ${height}`).attr("width", width).attr("height", height)
    .attr("class", "graph").attr("role", "group").attr("aria-label", "Stages and what they read");
  const id = anchor("tip", runs[0].pipeline);
  svg.append("defs").append("marker").attr("id", id).attr("viewBox", "0 0 8 8").attr("refX", 7).attr("refY", 4)
    .attr("markerWidth", 7).attr("markerHeight", 7).attr("orient", "auto").append("path").attr("d", "M0 0L8 4L0 8Z").attr("class", "tip");
  const line = d3.line().x((p) => p.x).y((p) => p.y).curve(d3.curveBasis);
  for (const edge of graph.edges()) {
    const { points, roles } = graph.edge(edge);
    const light = runOf.get(edge.w)?.family === "evaluation" ? " light" : "";
    svg.append("path").attr("class", `edge${light}`).attr("d", line(points)).attr("marker-end", `url(#${id})`)
      .append("title").text(`${edge.w} reads of ${edge.v}: ${[...new Set(roles)].join(", ")}`);
  }
  graph.nodes().forEach((name) => drawNode(svg, graph.node(name)));
  return { svg: svg.node(), start: graph.node(runs[0].id).x - left };
}

function readLine(input) {
  const size = [input.rows !== null ? `${count(input.rows)} rows` : null, input.bytes !== null ? bytes(input.bytes) : "no longer there"];
  return el("li", {}, `${input.roles.join(", ")}: `, input.from ? [runLink(input.from), " \u00b7 "] : null,
    el("code", {}, input.path), el("span", { class: "quiet" }, ` ${size.filter(Boolean).join(", ")}`));
}

function wroteLine(output) {
  const size = [output.rows !== null ? `${count(output.rows)} rows` : null, output.files > 1 ? `${output.files} files` : null, bytes(output.bytes)];
  return el("li", {}, el("code", {}, output.path), el("span", { class: "quiet" }, ` ${size.filter(Boolean).join(", ")}`));
}

function trainedOn(facts) {
  const parts = [facts.tokens !== null ? `${count(facts.tokens)} tokens` : null,
    facts.episodes !== null ? `${count(facts.episodes)} episodes` : null, facts.steps !== null ? `${count(facts.steps)} steps` : null];
  return parts.filter(Boolean).join(", ") || "\u2013";
}

function stageRow(run) {
  const facts = run.facts;
  const number = (value, unit) => el("td", { class: "number", title: value === null ? null : whole(value) }, inUnit(value, unit));
  return el("tr", {},
    el("th", { scope: "row" }, el("a", { href: `#${anchor("run", run.id)}` }, runName(run))),
    el("td", {}, run.finished ? run.family : el("strong", { class: "warn" }, "unfinished")),
    el("td", {}, trainedOn(facts)),
    number(facts.parameters, "count"),
    number(facts.trainable_parameters ?? (facts.steps !== null ? facts.parameters : null), "count"),
    number(facts.seconds, "seconds"),
    number(facts.peak_memory_bytes, "bytes"),
    number(facts.bytes, "bytes"));
}

/** What data-prep reported of its data sets, a row a set. */
function setTable(run) {
  const sets = new Map();
  for (const [key, value] of run.results) {
    const [, name, what] = key.match(/^datasets\.([^.]+)\.(.+)$/) ?? [];
    if (name) sets.set(name, { ...sets.get(name), [what]: value });
  }
  if (!sets.size) return null;
  const columns = [["records_kept", "Records"], ["train.rows", "Rows to train on"], ["train.tokens", "Tokens"], ["validation.rows", "Held-out rows"], ["prompts", "Held-out prompts"]];
  const rows = [...sets].map(([name, set]) => el("tr", {}, el("th", { scope: "row" }, name),
    columns.map(([key]) => el("td", { class: "number", title: set[key] === undefined ? null : whole(set[key]) }, inUnit(set[key], "count")))));
  return scrolled(`Data sets of ${runName(run)}`, table("Data sets", ["Set", ...columns.map(([, content]) => ({ number: true, content }))], rows));
}

/** Whether a result stands under its stage: not in a table of its own, and one value. */
function told(run, key, value) {
  if (key.startsWith("datasets.") || (run.family === "evaluation" && key.split(".").length > 2)) return false;
  return ["number", "string", "boolean"].includes(typeof value);
}

function stageDetails(run) {
  const results = run.results.filter(([key, value]) => told(run, key, value));
  return el("details", { class: "run", id: anchor("run", run.id) },
    el("summary", {}, el("strong", {}, runName(run)), " ", el("span", { class: "quiet" },
      run.finished ? `${run.stage} \u00b7 ${run.path}` : `unfinished \u00b7 ${run.path}`)),
    run.finished ? null : notice("This run has no manifest: it has not finished, or was stopped. What is shown is what it logged so far."),
    el("div", { class: "columns" },
      run.inputs.length ? el("div", {}, el("h4", {}, "Read"), el("ul", {}, run.inputs.map(readLine))) : null,
      run.outputs.length ? el("div", {}, el("h4", {}, "Wrote"), el("ul", {}, run.outputs.map(wroteLine))) : null,
      results.length ? el("div", {}, el("h4", {}, "Reported"), el("dl", { class: "pairs" }, results.map(([key, value]) =>
        el("div", {}, el("dt", {}, term(key, reportedName(key))), el("dd", {}, reported(key, value)))))) : null),
    setTable(run));
}

/** A reported number's title, with what it is of: `evaluation.clinic.after.f1` is that of clinic, after training. */
function reportedName(key) {
  const metric = meaningOf(key);
  if (!metric || meanings.has(key)) return metric?.title ?? key;
  const parts = key.replace("eval_before", "before").split(".");
  parts.splice(parts[0] === metric.name ? 0 : -1, 1);
  const of = parts.filter((part) => !["evaluation", "eval", "objective"].includes(part)).map((part) => part.replaceAll("_", " "));
  return [metric.title, ...of].join(", ");
}

function reported(key, value) {
  if (typeof value !== "number") return shown(value);
  const unit = meaningOf(key)?.unit;
  // finetune and peft have chrF from 0 to 100, as sacrebleu has it.
  const shared = /(^|\.)chrf$/.test(key) ? value / 100 : value;
  return unit ? el("span", { title: whole(value) }, inUnit(shared, unit)) : shown(value);
}

function drawStages() {
  const body = bodyOf("stages");
  for (const pipeline of report.pipelines) {
    const runs = report.runs.filter((run) => run.pipeline === pipeline);
    if (!runs.length) continue;
    const place = el("div", { class: "scroll graph-place", role: "group", "aria-label": `Graph of ${pipeline}`, tabindex: "0" });
    body.append(el("figure", {}, el("figcaption", {}, `Pipeline ${pipeline}`), place));
    let was;
    const draw = () => {
      const across = place.clientWidth > 760;
      if (across === was) return;
      was = across;
      const { svg, start } = drawGraph(runs, across);
      place.replaceChildren(svg);
      place.scrollLeft = across ? 0 : start - place.clientWidth / 2;
    };
    draw();
    window.addEventListener("resize", draw);
  }
  const heads = ["Stage", "Kind", "Trained on", ...["parameters", "trainable_parameters", "seconds", "peak_memory_bytes", "bytes"]
    .map((name) => ({ number: true, content: term(name) }))];
  body.append(scrolled("Table of stages", table("All stages, in the order of what they read", heads, report.runs.map(stageRow), { id: "stage-table" })));
  body.append(el("h3", {}, "Each stage in detail"), el("div", { class: "runs" }, report.runs.map(stageDetails)));
}

/** A link to a stage opens its details. */
function openTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
}
window.addEventListener("hashchange", openTarget);
