// @ts-check
// What was done to each matrix: a heat map of layers by matrices, and the same as a table.
import { html, useMemo, useState } from "../vendor/preact-htm.js";
import { Wide } from "../lib/parts.js";
import * as words from "../lib/words.js";

const FIGURES = ["bits", "rank", "relative_error", "kept", "ratio"];

/** @param {string} name */
function parts(name) {
  const found = /^(.*?\.)?(\d+)\.(.+)$/.exec(name);
  return found ? { layer: Number(found[2]), matrix: found[3] } : null;
}

/** @param {{layers: any[]}} props */
export function Layers({ layers }) {
  const stages = useMemo(() => [...new Set(layers.map((one) => one.stage))], [layers]);
  const [stage, setStage] = useState("");
  const shown = layers.filter((one) => one.stage === (stage || stages[stages.length - 1]));
  const figures = [...new Set(shown.flatMap((one) => Object.keys(one.figures).filter((name) => typeof one.figures[name] === "number")))];
  const [figure, setFigure] = useState("");
  const chosen = figures.includes(figure) ? figure : FIGURES.find((name) => figures.includes(name)) || figures[0];
  const [open, setOpen] = useState(false);
  if (!layers.length) return html`<p>No matrix was changed.</p>`;
  return html`<div class="filters">
      <label>Stage <select onChange=${(/** @type {any} */ e) => setStage(e.target.value)}>${stages.map((one) => html`<option value=${one} selected=${one === (stage || stages[stages.length - 1])}>${one}</option>`)}</select></label>
      <label>Figure <select onChange=${(/** @type {any} */ e) => setFigure(e.target.value)}>${figures.map((one) => html`<option value=${one} selected=${one === chosen}>${one}</option>`)}</select></label>
      <button type="button" class="quiet" aria-expanded=${open} onClick=${() => setOpen(!open)}>${open ? "Hide the table" : "Show as a table"}</button>
    </div>
    <${Heat} rows=${shown} figure=${chosen} />
    ${open && html`<${Wide} label="Every matrix"><table><caption class="unseen">Every matrix</caption><thead><tr><th scope="col">Matrix</th><th scope="col">Stage</th><th scope="col">Changed</th>${figures.map((one) => html`<th scope="col" class="figure">${one}</th>`)}<th scope="col">Why</th></tr></thead>
      <tbody>${shown.map((one) => html`<tr key=${one.number}><th scope="row">${one.layer}</th><td>${one.stage}</td><td>${one.applied ? "yes" : "no"}</td>${figures.map((name) => html`<td class="figure">${words.exact(one.figures[name])}</td>`)}<td>${one.reason}</td></tr>`)}</tbody></table><//>`}`;
}

/** @param {{rows: any[], figure: string}} props */
function Heat({ rows, figure }) {
  const placed = rows.map((one) => ({ ...one, at: parts(one.layer) })).filter((one) => one.at);
  if (!placed.length || !figure) return null;
  const matrices = [...new Set(placed.map((one) => one.at.matrix))];
  const count = Math.max(...placed.map((one) => one.at.layer)) + 1;
  const values = placed.filter((one) => one.applied && Number.isFinite(one.figures[figure])).map((one) => one.figures[figure]);
  const low = Math.min(...values), high = Math.max(...values);
  const size = 18, left = 150;
  return html`<${Wide} label=${`${figure} by layer and matrix`}><svg class="heat" width=${left + count * size + 4} height=${matrices.length * size + 24} role="img" aria-label=${`${figure} of ${placed.length} matrices, from ${words.number(low)} to ${words.number(high)}; the table has every figure`}>
    ${matrices.map((name, row) => html`<text x=${left - 6} y=${row * size + 14} text-anchor="end">${name}</text>`)}
    ${placed.map((one) => {
      const value = one.figures[figure];
      const depth = high > low ? (value - low) / (high - low) : 1;
      const known = one.applied && Number.isFinite(value);
      return html`<rect class=${known ? "cell" : "cell hollow"} fill-opacity=${known ? 0.15 + 0.85 * depth : undefined} x=${left + one.at.layer * size} y=${matrices.indexOf(one.at.matrix) * size} width=${size - 2} height=${size - 2}><title>${`${one.layer}: ${figure} ${words.number(value)}${one.reason ? `; ${one.reason}` : ""}`}</title></rect>`;
    })}
    <text x=${left} y=${matrices.length * size + 18}>layer 0</text><text x=${left + count * size} y=${matrices.length * size + 18} text-anchor="end">${count - 1}</text>
  </svg><//>`;
}
