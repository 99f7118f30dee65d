"use strict";
// Draws the page, top to bottom.

function drawSummary() {
  const finished = report.runs.filter((run) => run.finished);
  const open = report.runs.length - finished.length;
  const seconds = finished.reduce((sum, run) => sum + run.facts.seconds, 0);
  const counted = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
  const parts = [counted(report.runs.length, "stage"),
    several ? counted(report.pipelines.length, "pipeline") : null, open ? `${open} unfinished` : null, `${duration(seconds)} of work`,
    report.evaluations.length ? counted(tests().size, "test") : null];
  document.getElementById("summary").textContent = parts.filter(Boolean).join(" \u00b7 ");
}

/** The theme: the system's, light or dark. */
function themeButton() {
  const button = document.getElementById("theme");
  const themes = [["", "as the system"], ["light", "light"], ["dark", "dark"]];
  let at = 0;
  button.addEventListener("click", () => {
    at = (at + 1) % themes.length;
    document.documentElement.dataset.theme = themes[at][0];
    button.textContent = `Theme: ${themes[at][1]}`;
  });
}

themeButton();
drawSummary();
drawStages();
drawCurves();
drawResults();
drawCompare();
drawAnswers();
drawLineage();
drawNumbers();
openTarget();
