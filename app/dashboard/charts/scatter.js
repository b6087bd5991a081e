// @ts-check
// Points in a plane with a step through the front: SVG, so that it can be printed, read aloud and seen in the dark.
import { html } from "../vendor/preact-htm.js";
import * as words from "../lib/words.js";

const WIDTH = 640, HEIGHT = 360, LEFT = 64, BOTTOM = 44, TOP = 16, RIGHT = 24;
const SHAPES = ["circle", "square", "diamond", "triangle"];

/** @param {number} low @param {number} high */
function ticks(low, high) {
  const step = 10 ** Math.floor(Math.log10((high - low) / 2 || 1));
  const wide = (high - low) / step > 8 ? 5 * step : (high - low) / step > 4 ? 2 * step : step;
  const found = [];
  for (let at = Math.ceil(low / wide) * wide; at <= high; at += wide) found.push(at);
  return found;
}

/** @param {number} low @param {number} high */
const decades = (low, high) => {
  const found = [];
  for (let at = Math.floor(Math.log10(low)); at <= Math.ceil(Math.log10(high)); at += 1) found.push(10 ** at);
  return found;
};

/**
 * @param {{points: {x: number, y: number, error?: number | null, name: string, href?: string, front?: boolean, best?: boolean, group?: number}[],
 *   x: string, y: string, log?: boolean, xText?: (value: number) => string, label: string}} props
 */
export function Scatter({ points, x, y, log, xText = (value) => words.number(value), label }) {
  const known = points.filter((one) => Number.isFinite(one.x) && Number.isFinite(one.y));
  if (!known.length) return html`<p class="notice">Nothing to draw yet.</p>`;
  const least = Math.min(...known.filter((one) => one.y > 0).map((one) => one.y), 1);
  const value = (/** @type {number} */ at) => (log ? Math.max(at, least / 2) : at);
  const widest = Math.max(...known.map((one) => one.x)), narrowest = Math.min(...known.map((one) => one.x));
  const lowX = narrowest > widest / 2 ? Math.max(0, narrowest - (widest - narrowest || widest / 2) * 0.15) : 0; // from zero, unless that is far off
  const highX = widest + (widest - lowX) * 0.08 || 1;
  const rows = log ? decades(Math.min(...known.map((one) => value(one.y))), Math.max(...known.map((one) => value(one.y)))) : [];
  const lowY = log ? rows[0] : Math.min(...known.map((one) => one.y)) * 0.98;
  const highY = log ? rows[rows.length - 1] : Math.max(...known.map((one) => one.y)) * 1.02;
  const px = (/** @type {number} */ at) => LEFT + ((at - lowX) / (highX - lowX || 1)) * (WIDTH - LEFT - RIGHT);
  const part = (/** @type {number} */ at) => (log ? (Math.log10(value(at)) - Math.log10(lowY)) / (Math.log10(highY) - Math.log10(lowY) || 1) : (at - lowY) / (highY - lowY || 1));
  const py = (/** @type {number} */ at) => HEIGHT - BOTTOM - part(at) * (HEIGHT - BOTTOM - TOP);
  const front = known.filter((one) => one.front).sort((one, other) => one.x - other.x);
  const step = front.map((one, at) => (at ? `H${px(one.x)}V${py(one.y)}` : `M${px(one.x)} ${py(one.y)}`)).join("");
  return html`<svg class="chart" viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} role="group" aria-label=${label}>
    ${ticks(lowX, highX).map((at) => html`<g class="tick"><path d=${`M${px(at)} ${TOP}V${HEIGHT - BOTTOM}`} /><text x=${px(at)} y=${HEIGHT - BOTTOM + 16} text-anchor="middle">${xText(at)}</text></g>`)}
    ${(log ? rows : ticks(lowY, highY)).map((at) => html`<g class="tick"><path d=${`M${LEFT} ${py(at)}H${WIDTH - RIGHT}`} /><text x=${LEFT - 6} y=${py(at) + 4} text-anchor="end">${words.number(at, 2)}</text></g>`)}
    <text class="axis" x=${(LEFT + WIDTH - RIGHT) / 2} y=${HEIGHT - 6} text-anchor="middle">${x}</text>
    <text class="axis" transform=${`translate(14 ${(HEIGHT - BOTTOM) / 2}) rotate(-90)`} text-anchor="middle">${y}</text>
    ${step && html`<path class="front" d=${step} />`}
    ${known.map((one) => html`<${Point} one=${one} x=${px(one.x)} y=${py(one.y)} high=${one.error ? py(one.y + one.error) : null} low=${one.error ? py(log ? Math.max(one.y - one.error, lowY) : one.y - one.error) : null} />`)}
  </svg>`;
}

/** @param {{one: any, x: number, y: number, high: number | null, low: number | null}} props */
function Point({ one, x, y, high, low }) {
  const shape = SHAPES[(one.group || 0) % SHAPES.length];
  const mark = {
    circle: html`<circle cx=${x} cy=${y} r="5" />`,
    square: html`<rect x=${x - 5} y=${y - 5} width="10" height="10" />`,
    diamond: html`<path d=${`M${x} ${y - 6}l6 6-6 6-6-6z`} />`,
    triangle: html`<path d=${`M${x} ${y - 6}l6 11h-12z`} />`,
  }[shape];
  const body = html`${high != null && html`<path class="error" d=${`M${x} ${high}V${low}`} />`}<g class=${`mark ${one.front ? "on" : "off"}`}>${mark}</g>${one.best && html`<circle class="ring" cx=${x} cy=${y} r="10" />`}<text class="name" x=${x > 0.8 * WIDTH ? x - 8 : x + 8} y=${y - 7} text-anchor=${x > 0.8 * WIDTH ? "end" : "start"}>${one.name}</text>`;
  const told = `${one.name}${one.best ? ", best" : ""}${one.front ? ", on the front" : ""}`;
  return one.href ? html`<a href=${one.href} aria-label=${told}><title>${told}</title>${body}</a>` : html`<g>${body}</g>`;
}
