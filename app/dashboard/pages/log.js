// @ts-check
import { html, useEffect, useRef, useState } from "../vendor/preact-htm.js";
import { get } from "../lib/api.js";

const MOST = 2000;

/** A job's log: from its last lines on, and followed only while its end is seen. @param {{id: string, isActive: boolean}} props */
export function Log({ id, isActive }) {
  const [open, setOpen] = useState(false);
  const [lines, setLines] = useState(/** @type {any[]} */ ([]));
  const [follows, setFollows] = useState(true);
  const box = useRef(/** @type {any} */ (null));
  useEffect(() => {
    if (!open) return undefined;
    let source = /** @type {EventSource | null} */ (null);
    let gone = false;
    const add = (/** @type {any[]} */ more) => setLines((old) => [...old, ...more].slice(-MOST));
    get(`/jobs/${id}/logs?tail=500`).then((page) => {
      if (gone) return;
      setLines(page.data);
      if (!isActive) return;
      const last = page.data.length ? page.data[page.data.length - 1].id : 0;
      source = new EventSource(`/jobs/${id}/logs?after=${last}`);
      source.addEventListener("log", (event) => add([JSON.parse(/** @type {MessageEvent} */ (event).data)]));
    }, () => {});
    return () => {
      gone = true;
      if (source) source.close();
    };
  }, [open, id, isActive]);
  useEffect(() => {
    if (follows && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [lines, follows, open]);
  const scrolled = () => setFollows(box.current.scrollTop + box.current.clientHeight >= box.current.scrollHeight - 8);
  return html`<details onToggle=${(/** @type {any} */ event) => setOpen(event.target.open)}><summary>Show log</summary>
    <div class="log" ref=${box} onScroll=${scrolled} tabindex="0" role="log" aria-label="Log" aria-live="off">${lines.length ? lines.map((line) => html`<div key=${line.id}><span class="small">${new Date(line.at).toLocaleTimeString()}</span> ${line.text}</div>`) : html`<p>Nothing was written${isActive ? " yet" : ""}.</p>`}</div>
    <p>${!follows && html`<button type="button" onClick=${() => setFollows(true)}>To the end</button>`} <a href=${`/jobs/${id}/logs?text=true`} download=${`${id}.log`}>Download all of it</a></p></details>`;
}
