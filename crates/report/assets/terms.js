"use strict";
// What words and numbers mean, shown where they stand.

const meanings = new Map(report.metrics.map((metric) => [metric.name, metric]));
const glossary = new Map(report.glossary.map((entry) => [entry.word, entry.meaning]));
const used = new Map();

/** Under which names the meaning of one may stand: `accuracy/ko` is `accuracy`, `eval.kl` is `eval/kl`, `before.ended` is `ended`. */
function namesOf(name) {
  const [first, last] = [name.split(".")[0], name.split(".").at(-1)];
  return [name, name.split("/")[0], name.replace(/^eval_/, ""), name.replace(/^eval(_before)?\./, "eval/"), last, first];
}

/** The metric behind a name. */
function meaningOf(name) {
  const known = namesOf(name).find((one) => meanings.has(one));
  return meanings.get(known) ?? null;
}

function titleOf(name) {
  return meanings.get(name)?.title ?? name;
}

/** What a name means, in a sentence; nothing where nobody wrote one. */
function sentence(name) {
  const metric = meaningOf(name);
  if (!metric) return glossary.get(name) ?? null;
  const direction = { higher: "More is better.", lower: "Less is better.", neither: "" }[metric.better];
  return `${metric.meaning} ${direction}`.trim();
}

/** A word that explains itself: a button where its meaning is known, otherwise plain. */
function term(name, text = titleOf(name)) {
  const meaning = sentence(name);
  if (!meaning) return el("span", {}, text);
  used.set(meaningOf(name)?.title ?? name, meaning);
  return explained(text, meaning);
}

function explained(text, meaning) {
  const button = el("button", { type: "button", class: "term", "aria-expanded": "false" }, text);
  button.addEventListener("click", () => (note.owner === button && note.pinned ? note.hide() : note.show(button, meaning, true)));
  button.addEventListener("pointerenter", (event) => {
    if (event.pointerType === "mouse" && !note.pinned) note.show(button, meaning, false);
  });
  button.addEventListener("pointerleave", () => { if (!note.pinned) note.hide(); });
  button.addEventListener("blur", () => { if (note.owner === button) note.hide(); });
  return button;
}

const note = {
  box: document.getElementById("note"),
  owner: null,
  pinned: false,
  show(button, meaning, pinned) {
    this.hide();
    this.owner = button;
    this.pinned = pinned;
    this.box.textContent = meaning;
    this.box.hidden = false;
    button.setAttribute("aria-describedby", "note");
    button.setAttribute("aria-expanded", "true");
    const at = button.getBoundingClientRect();
    const width = Math.min(340, document.documentElement.clientWidth - 24);
    this.box.style.width = `${width}px`;
    const left = Math.max(12, Math.min(at.left, document.documentElement.clientWidth - width - 12));
    this.box.style.left = `${left + window.scrollX}px`;
    const below = at.bottom + 6;
    const fits = below + this.box.offsetHeight < window.innerHeight || at.top < this.box.offsetHeight + 6;
    this.box.style.top = `${(fits ? below : at.top - this.box.offsetHeight - 6) + window.scrollY}px`;
  },
  hide() {
    this.box.hidden = true;
    this.owner?.setAttribute("aria-expanded", "false");
    this.owner?.removeAttribute("aria-describedby");
    this.owner = null;
    this.pinned = false;
  },
};

document.addEventListener("keydown", (event) => { if (event.key === "Escape") note.hide(); });

/** The list of what the numbers on this page mean, once they are all there. */
function drawNumbers() {
  const entries = [...used].sort(([a], [b]) => a.localeCompare(b, "en"));
  document.getElementById("numbers").append(
    ...entries.map(([word, meaning]) => el("div", {}, el("dt", {}, word), el("dd", {}, meaning))));
}
