// @ts-check
// Pieces that pages are made of.
import { html, useEffect, useRef, useState } from "../vendor/preact-htm.js";
import * as words from "./words.js";

/** @param {{status: string}} props */
export const Status = ({ status }) =>
  html`<span class=${`status ${status}`}><span aria-hidden="true">${words.symbol(status)}</span> ${status}</span>`;

/** @param {{value: number | null, label: string, text?: string}} props */
export const Bar = ({ value, label, text }) =>
  html`<progress max="1" value=${value == null ? undefined : value} aria-label=${label} aria-valuetext=${text}></progress>`;

/** @param {{iso: string | null, relative?: boolean}} props */
export const Time = ({ iso, relative }) =>
  iso ? html`<time datetime=${iso} title=${new Date(iso).toISOString()}>${relative ? words.age(iso) : words.instant(iso)}</time>` : "–";

/** @param {{text: string, label: string}} props */
export function Copy({ text, label }) {
  const [done, set] = useState(false);
  if (!navigator.clipboard) return html`<input class="copy" readonly value=${text} aria-label=${label} onFocus=${(/** @type {any} */ e) => e.target.select()} />`;
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    set(true);
    setTimeout(() => set(false), 2000);
  };
  return html`<button type="button" class="quiet" onClick=${copy}>${done ? "Copied" : label}</button>`;
}

/** A document that is not there (yet): what is shown in its place. @param {{error: any, data: any, since: number, next?: number, children?: any}} props */
export function Loaded({ error, data, since, next, children }) {
  const slow = useAfter(300);
  if (error && error.status === 401) return null;
  if (!data && error) {
    return html`<div class="notice bad" role="alert"><p>${error.message}</p>${error.problem?.request_id && html`<p class="small">Request ${error.problem.request_id}</p>`}<${Again} next=${next} /></div>`;
  }
  if (!data) return html`<div aria-busy="true" class="skeleton">${slow && html`<p class="small">Loading …</p>`}</div>`;
  return html`${error && html`<${Stale} error=${error} since=${since} next=${next} />`}<div class=${error ? "stale" : ""}>${children}</div>`;
}

/** Seconds until it is tried again, counted down; they are not said aloud each time. @param {{next?: number}} props */
function Again({ next }) {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((old) => old + 1), 1000);
    return () => clearInterval(timer);
  }, []);
  const seconds = Math.ceil(((next || 0) - Date.now()) / 1000);
  return seconds > 0 && seconds < 600 ? html` <span aria-live="off">Trying again in ${seconds} s.</span>` : null;
}

/** @param {{error: any, since: number, next?: number}} props */
const Stale = ({ error, since, next }) =>
  html`<div class="notice warn" role="status">${error.code === "own_script" ? `An error of this page: ${error.message}` : error.message} What is shown is from ${new Date(since).toLocaleTimeString()}.<${Again} next=${next} /></div>`;

/** @param {number} ms */
function useAfter(ms) {
  const [is, set] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => set(true), ms);
    return () => clearTimeout(timer);
  }, []);
  return is;
}

/** A question before something is done. @param {{open: boolean, title: string, children?: any, action: string, onDone: () => void, onClose: () => void}} props */
export function Question({ open, title, children, action, onDone, onClose }) {
  const ref = useRef(/** @type {any} */ (null));
  useEffect(() => {
    const dialog = ref.current;
    if (open && !dialog.open) dialog.showModal();
    if (!open && dialog.open) dialog.close();
  }, [open]);
  return html`<dialog ref=${ref} onClose=${onClose} aria-labelledby="question">
    <h2 id="question">${title}</h2>${children}
    <p class="buttons"><button type="button" onClick=${onDone}>${action}</button> <button type="button" class="quiet" onClick=${onClose}>Leave it</button></p>
  </dialog>`;
}

/** A table that scrolls by itself, never the page. @param {{label: string, children?: any}} props */
export const Wide = ({ label, children }) => html`<div class="wide" role="region" aria-label=${label} tabindex="0">${children}</div>`;

/** @param {{labels: Record<string, string>}} props */
export const Labels = ({ labels }) =>
  Object.entries(labels).map(([name, value]) => html`<span class="label">${name}=${value}</span> `);

/** A line that screen readers say, and nobody sees. @param {{text: string}} props */
export const Announce = ({ text }) => html`<p class="unseen" role="status">${text}</p>`;
