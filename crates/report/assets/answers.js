"use strict";
// The same prompts answered by every model, and what single stages wrote.

const PAGE = 20;

/** Text as it is searched: Korean written in either of Unicode's forms is the same. */
function searchable(text) {
  return String(text).normalize("NFC").toLowerCase();
}

/** A text with the marks of its chat template set back. */
function spoken(text) {
  return text.trim().split(/(<\|[^|<>]*\|>)/).map((part) => (/^<\|.*\|>$/.test(part) ? el("span", { class: "mark" }, part) : part));
}

function isRight(score) {
  return score === 1;
}

/** Whether the scores of a test say right or wrong, rather than how much. */
function binary(asked) {
  return asked.every((one) => one.answers.every(([, , score]) => score === null || score === 0 || score === 1));
}

function badge(score, rightOrWrong) {
  if (score === null) return null;
  if (!rightOrWrong) return el("span", { class: "badge" }, `score ${plain(score)}`);
  return isRight(score) ? el("span", { class: "badge right" }, "\u2713 right") : el("span", { class: "badge wrong" }, "\u2717 wrong");
}

function card(asked, models, rightOrWrong) {
  const answers = asked.answers.filter(([model]) => models.has(model));
  return el("article", { class: "asked", "aria-label": `${asked.test} ${asked.item}` },
    el("p", { class: "quiet" }, `${asked.test} \u00b7 item ${asked.item}`),
    el("p", { class: "prompt", dir: "auto" }, spoken(asked.prompt)),
    asked.answer !== null ? el("p", { class: "wanted" }, el("span", { class: "quiet" }, "Right answer "), asked.answer) : null,
    el("dl", { class: "said" }, answers.map(([model, text, score]) => el("div", {},
      el("dt", {}, model, " ", badge(score, rightOrWrong)), el("dd", { dir: "auto" }, text.trim() ? spoken(text) : el("em", {}, "nothing"))))));
}

function passes(asked, state) {
  if (state.test && asked.test !== state.test) return false;
  const scores = asked.answers.filter(([model]) => !state.model || model === state.model).map(([, , score]) => score).filter((score) => score !== null);
  const right = scores.filter(isRight).length;
  if (state.judged === "right" && !right) return false;
  if (state.judged === "wrong" && (!scores.length || right === scores.length)) return false;
  if (state.judged === "differ" && (right === 0 || right === scores.length)) return false;
  if (!state.text) return true;
  const texts = [asked.prompt, asked.answer ?? "", ...asked.answers.map(([, text]) => text)];
  return texts.some((text) => searchable(text).includes(state.text));
}

function drawAsked(evaluated) {
  const { asked, totals } = evaluated.answers;
  const names = evaluated.results.models.map((model) => model.name).filter((name) => asked.some((one) => one.answers.some(([model]) => model === name)));
  const rightOrWrong = new Map(Object.keys(totals).map((test) => [test, binary(asked.filter((one) => one.test === test))]));
  const state = { test: "", judged: "", model: "", text: "", most: PAGE };
  const models = new Set(names);
  const list = el("div", { class: "asked-list" });
  const status = el("p", { class: "status", role: "status" });
  const more = el("button", { type: "button", class: "more", onclick: () => { state.most += PAGE; draw(false); } }, "Show more");
  const draw = (again = true) => {
    if (again) state.most = PAGE;
    const found = asked.filter((one) => passes(one, state));
    list.replaceChildren(...found.slice(0, state.most).map((one) => card(one, models, rightOrWrong.get(one.test))));
    status.textContent = `${found.length} of ${asked.length} prompts`;
    more.hidden = found.length <= state.most;
  };
  const set = (key) => (value) => { state[key] = value; draw(); };
  const search = el("input", { type: "search", placeholder: "text of prompt or answer, \ud55c\uad6d\uc5b4\ub3c4", oninput: () => { state.text = searchable(search.value.trim()); draw(); } });
  const shown = el("fieldset", { class: "choices" }, el("legend", {}, "Models"), names.map((name) => el("label", {}, el("input", { type: "checkbox", checked: true,
    onchange: (event) => { if (event.target.checked) models.add(name); else models.delete(name); draw(); } }), el("span", {}, name))));
  const parts = Object.entries(totals).map(([test, total]) => {
    const here = asked.filter((one) => one.test === test).length;
    return here < total ? `${here} of the ${total} of ${test}` : null;
  }).filter(Boolean);
  draw();
  return el("div", { class: "answers", "data-run": evaluated.run },
    several ? el("h3", {}, `Pipeline ${evaluated.pipeline}`) : null,
    parts.length ? el("p", { class: "quiet" }, `Shown are, evenly spread: ${parts.join(", ")}. All of them are in samples.parquet of ${evaluated.run}.`) : null,
    el("div", { class: "controls" },
      menu("Test", [["", "all"], ...Object.keys(totals).map((test) => [test, test])], "", set("test")),
      menu("Answered", [["", "any way"], ["right", "right"], ["wrong", "wrong"], ["differ", "right by some, wrong by others"]], "", set("judged")),
      menu("by", [["", "any model"], ...names.map((name) => [name, name])], "", set("model")),
      el("label", { class: "control grow" }, el("span", {}, "Search"), search)),
    shown, status, list, more);
}

function drawSamples(runs) {
  const place = el("div");
  const search = el("input", { type: "search", oninput: () => draw() });
  const status = el("p", { class: "status", role: "status" });
  let run = runs[0];
  const draw = () => {
    const { columns, rows, total } = run.samples;
    const text = searchable(search.value.trim());
    const found = rows.filter((row) => !text || row.some((cell) => searchable(cell ?? "").includes(text)));
    const heads = columns.map((name) => ({ number: false, content: term(name, name.replaceAll("_", " ")) }));
    const cell = (value) => el("td", { class: typeof value === "number" ? "number" : "text", dir: typeof value === "string" ? "auto" : null },
      value === null ? "" : typeof value === "number" ? plain(value) : spoken(String(value)));
    place.replaceChildren(scrolled(`Samples of ${runName(run)}`, table(`${rows.length} of the ${count(total)} samples of ${runName(run)}, evenly spread`, heads,
      found.map((row) => el("tr", {}, row.map(cell))), { class: "samples" })));
    status.textContent = `${found.length} rows`;
  };
  draw();
  return el("div", { id: "samples" }, el("h3", {}, "What stages wrote themselves"),
    el("p", {}, "Samples that a stage kept while it ran: answers before and after, revisions, pairs with their scores."),
    el("div", { class: "controls" },
      menu("Stage", runs.map((one) => [one.id, runName(one)]), run.id, (id) => { run = runOf.get(id); draw(); }),
      el("label", { class: "control grow" }, el("span", {}, "Search"), search)), status, place);
}

function drawAnswers() {
  const body = bodyOf("answers");
  const asked = report.evaluations.filter((evaluated) => evaluated.answers?.asked.length);
  const own = report.runs.filter((run) => run.samples?.rows.length);
  if (!asked.length) body.append(notice("No run of evaluate with answers is among these runs."));
  body.append(...asked.map(drawAsked), own.length ? drawSamples(own) : "");
}
