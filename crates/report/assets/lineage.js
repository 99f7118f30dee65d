"use strict";
// Where each run came from, and how the configurations of two differ.

function shortDigest(digest) {
  return el("code", { class: "digest", title: digest }, digest.replace("sha256:", "").slice(0, 12));
}

function lineageRow(run) {
  const facts = run.facts;
  const versions = facts.versions.map(([name, version]) => `${name} ${version}`).join(", ");
  return el("tr", {},
    el("th", { scope: "row" }, el("a", { href: `#${anchor("run", run.id)}` }, runName(run))),
    el("td", {}, facts.started_at ? facts.started_at.replace("T", " ").replace(/(\.\d+)?Z$/, " UTC") : "\u2013"),
    el("td", {}, facts.device ?? "\u2013"),
    el("td", { class: "number" }, facts.seed === null ? "\u2013" : String(facts.seed)),
    el("td", {}, versions || "\u2013"),
    el("td", {}, facts.tokenizer ? shortDigest(facts.tokenizer) : "\u2013"),
    el("td", {}, run.inputs.length ? el("ul", { class: "plain" }, run.inputs.map((input) => el("li", {}, input.roles.join(", "), " ", shortDigest(input.digest),
      input.from ? [" of ", runLink(input.from)] : null))) : "\u2013"));
}

function differences(a, b, all) {
  const [before, after] = [new Map(a.config), new Map(b.config)];
  const keys = [...new Set([...before.keys(), ...after.keys()])];
  const same = (key) => before.has(key) && after.has(key) && JSON.stringify(before.get(key)) === JSON.stringify(after.get(key));
  return keys.filter((key) => all || !same(key)).map((key) => ({ key, a: before.get(key), b: after.get(key), same: same(key) }));
}

/** The pair that says most at first: one stage in two pipelines, or the last two that trained. */
function firstPair() {
  for (const run of report.runs) {
    const twin = report.runs.find((other) => other.name === run.name && other.pipeline !== run.pipeline);
    if (twin) return [run, twin];
  }
  const twins = report.runs.flatMap((run) => report.runs.filter((other) => other !== run && other.stage && other.stage === run.stage).map((other) => [run, other]));
  return twins[0] ?? [report.runs[0], report.runs[report.runs.length - 1]];
}

function drawDifferences() {
  let [a, b] = firstPair();
  let all = false;
  const place = el("div");
  const status = el("p", { class: "status", role: "status" });
  const draw = () => {
    const found = differences(a, b, all);
    const rows = found.map((one) => el("tr", { class: one.same ? "same" : null }, el("th", { scope: "row" }, el("code", {}, one.key)),
      el("td", {}, shown(one.a)), el("td", {}, shown(one.b))));
    place.replaceChildren(scrolled("Differences of configurations", table("Configuration, key by key", ["Key", runName(a), runName(b)], rows, { id: "config-table" })));
    const count = found.filter((one) => !one.same).length;
    status.textContent = count === 1 ? "1 key differs" : `${count} keys differ`;
  };
  const options = report.runs.map((run) => [run.id, runName(run)]);
  draw();
  return [el("h3", {}, "Configurations of two runs"),
    el("div", { class: "controls" },
      menu("Of", options, a.id, (id) => { a = runOf.get(id); draw(); }),
      menu("and", options, b.id, (id) => { b = runOf.get(id); draw(); }),
      el("label", { class: "check" }, el("input", { type: "checkbox", onchange: (event) => { all = event.target.checked; draw(); } }), el("span", {}, "keys that are equal, too"))),
    status, place];
}

function drawLineage() {
  const body = bodyOf("lineage");
  const heads = ["Run", "Started", "Device", { number: true, content: "Seed" }, "Versions", "Tokenizer", "Read (digests, the first 12 digits)"];
  body.append(scrolled("Lineage", table("Runs and the digests of what they read", heads, report.runs.map(lineageRow), { id: "lineage-table" })));
  if (report.runs.length > 1) body.append(...drawDifferences());
}
