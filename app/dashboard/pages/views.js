// @ts-check
// Addresses of lists, under names of one's own; this browser keeps them.
import { html, useState } from "../vendor/preact-htm.js";

const KEPT = "spq-views";

/** @returns {Record<string, string>} */
function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(KEPT) || "{}");
    return typeof found === "object" && found ? found : {};
  } catch {
    return {};
  }
}

/** @param {{query: URLSearchParams}} props */
export function Views({ query }) {
  const [views, setViews] = useState(kept());
  const store = (/** @type {Record<string, string>} */ next) => {
    setViews(next);
    try {
      localStorage.setItem(KEPT, JSON.stringify(next));
    } catch { /* until the page is left */ }
  };
  const here = query.toString();
  const save = (/** @type {any} */ event) => {
    event.preventDefault();
    const name = String(new FormData(event.target).get("name")).trim();
    if (name) store({ ...views, [name]: here });
    event.target.reset();
  };
  const names = Object.keys(views).filter((name) => typeof views[name] === "string");
  return html`<details class="views"><summary>Views${names.length > 0 && ` (${names.length})`}</summary>
    ${names.length > 0 && html`<ul>${names.map((name) => html`<li key=${name}><a href=${`/ui/jobs?${views[name]}`} aria-current=${views[name] === here ? "true" : undefined}>${name}</a>
      <button type="button" class="quiet" aria-label=${`forget the view ${name}`} onClick=${() => store(Object.fromEntries(Object.entries(views).filter(([one]) => one !== name)))}>forget</button></li>`)}</ul>`}
    <form onSubmit=${save}><label>Name of this view <input name="name" maxlength="60" required /></label> <button>Save</button></form>
  </details>`;
}
