// @ts-check
// The stages of a job, done, at work and to come.
import { html } from "../vendor/preact-htm.js";
import * as words from "../lib/words.js";

const MARKS = { planned: "○", running: "◐", done: "●", skipped: "–", stopped: "✕" };

/** @param {{stages: any[]}} props */
export const Stages = ({ stages }) => html`<ol class="stages">${stages.map((one) => html`<li key=${one.id} class=${one.state} aria-current=${one.state === "running" ? "step" : undefined}>
    <span aria-hidden="true">${/** @type {any} */ (MARKS)[one.state]}</span> ${one.title} <span class="small">${said(one)}</span>
  </li>`)}</ol>`;

/** @param {any} one */
function said(one) {
  if (one.state === "done") return words.between(one.started_at, one.ended_at);
  if (one.state === "running") return one.total ? `${one.done} of ${one.total}` : "";
  return { planned: "", skipped: "not needed", stopped: "the job ended here" }[/** @type {"planned"} */ (one.state)] || "";
}
