// @ts-check
import { html } from "../vendor/preact-htm.js";
import { Wide } from "../lib/parts.js";
import * as words from "../lib/words.js";

/** What the job was expected to take, beside what it took. @param {{result: any}} props */
export function Costs({ result }) {
  const { estimate, measured } = result || {};
  if (!estimate || !measured) return null;
  const span = (/** @type {any} */ range, /** @type {(value: number) => string} */ told) => `${told(range.expected)} (${told(range.low)} to ${told(range.high)})`;
  const rows = [
    ["Artifact", span(estimate.artifact_bytes, words.bytes), words.bytes(measured.artifact_bytes)],
    ["Time", span(estimate.seconds, words.duration), words.duration(measured.seconds)],
    ["Memory at its highest", words.bytes(estimate.peak_bytes), words.bytes(measured.peak_bytes)],
  ];
  return html`<section><h2>What it took</h2><${Wide} label="What it took"><table><caption class="unseen">Expected and measured</caption>
    <thead><tr><th scope="col"><span class="unseen">What</span></th><th scope="col" class="figure">Expected</th><th scope="col" class="figure">Measured</th></tr></thead>
    <tbody>${rows.map(([name, expected, found]) => html`<tr><th scope="row">${name}</th><td class="figure">${expected}</td><td class="figure">${found}</td></tr>`)}</tbody></table><//></section>`;
}
