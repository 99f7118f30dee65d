"use strict";
// What the other scripts share: the data, elements, and numbers as people read them.

const report = JSON.parse(document.getElementById("data").textContent);
const several = report.pipelines.length > 1;
const runOf = new Map(report.runs.map((run) => [run.id, run]));

/** An element with attributes (`on...`: listeners) and children; text is never taken as HTML. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

/** An identifier for an anchor. */
function anchor(prefix, text) {
  return `${prefix}-${text.replace(/[^\p{L}\p{N}]+/gu, "-")}`;
}

/** A run's name, with its pipeline's where there are several. */
function runName(run) {
  return several ? `${run.pipeline} / ${run.name}` : run.name;
}

function runLink(id) {
  const run = runOf.get(id);
  return el("a", { href: `#${anchor("run", id)}` }, run ? runName(run) : id);
}

/** The place of a section for what a script draws. */
function bodyOf(section) {
  return document.querySelector(`#${section} .body`);
}

/** A table that can be scrolled where it is wider than the page. */
function scrolled(label, table) {
  return el("div", { class: "scroll", role: "group", "aria-label": label, tabindex: "0" }, table);
}

function table(caption, heads, rows, attributes = {}) {
  const head = (cell) => el("th", { scope: "col", class: cell.number ? "number" : null }, cell.content ?? cell);
  return el("table", attributes,
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, heads.map(head))),
    el("tbody", {}, rows));
}

const MINUS = "\u2212";

function signed(text) {
  return text.replace(/^-/, MINUS);
}

/** About three significant digits, or all of a small count. */
function plain(value) {
  if (!Number.isFinite(value)) return "\u2013";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return signed(value.toLocaleString("en").replaceAll(",", "\u202f"));
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return signed(value.toExponential(2).replace("e+", "e"));
  if (size >= 1e4) return plain(Math.round(value));
  return signed(value.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : size >= 1 ? 3 : 4));
}

function count(value) {
  if (value < 1e5) return plain(value);
  const [unit, by] = value >= 1e9 ? ["G", 1e9] : value >= 1e6 ? ["M", 1e6] : ["k", 1e3];
  return `${(value / by).toPrecision(3)}\u202f${unit}`;
}

function bytes(value) {
  let unit = 0;
  while (value >= 1024 && unit < 4) { value /= 1024; unit += 1; }
  return `${unit ? value.toPrecision(3) : value}\u202f${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)}\u202fs`;
  const s = Math.round(seconds);
  if (s < 60) return `${s}\u202fs`;
  const [minutes, hours] = [Math.floor(s / 60), Math.floor(s / 3600)];
  if (!hours) return `${minutes}\u202fmin ${s % 60}\u202fs`;
  return `${hours}\u202fh ${minutes % 60}\u202fmin`;
}

/** A number in its unit: that of a metric's meaning, or of an evaluation. */
function inUnit(value, unit) {
  if (value === null || value === undefined) return "\u2013";
  switch (unit) {
    case "share": return `${signed((value * 100).toFixed(1))}\u202f%`;
    case "count": return count(value);
    case "bytes": return bytes(value);
    case "seconds": return duration(value);
    case "tokens": return plain(Number(value.toPrecision(4)));
    default: return plain(value);
  }
}

/** The number whole, for those who point at it. */
function whole(value) {
  return Number.isInteger(value) ? value.toLocaleString("en") : String(value);
}

/** Any value of a result or a configuration. */
function shown(value) {
  if (value === undefined) return "\u2013";
  if (value === null) return "none";
  if (typeof value === "number") return el("span", { title: whole(value) }, plain(value));
  if (Array.isArray(value)) return value.length ? value.join(", ") : "none";
  if (typeof value === "object") return "none";
  return value === "" ? "\u201c\u201d" : String(value);
}

/** One value of several as a menu with a label. */
function menu(label, options, chosen, change) {
  const select = el("select", { onchange: () => change(select.value) },
    options.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
  return el("label", { class: "control" }, el("span", {}, label), select);
}

function notice(...text) {
  return el("p", { class: "notice" }, ...text);
}

/** Says something to those who listen to the page. */
function say(text) {
  document.getElementById("said").textContent = text;
}
