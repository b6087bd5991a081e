// @ts-check
import { html } from "../vendor/preact-htm.js";
import { useDocument, withQuery } from "../lib/hooks.js";
import { Loaded, Status, Time, Wide } from "../lib/parts.js";

/** @param {{query: URLSearchParams}} props */
export function Sweeps({ query }) {
  const after = query.get("after");
  const found = useDocument(`/sweeps?limit=50${after ? `&after=${encodeURIComponent(after)}` : ""}`, (event) => event.type === "sweep");
  const rows = found.data?.data || [];
  return html`<h1>Sweeps</h1><${Loaded} ...${found}>
    ${rows.length === 0 ? html`<div class="notice"><p>No sweeps yet. A sweep makes many recipes of one model and says which are worth taking:</p><pre>spq sweeps submit HuggingFaceTB/SmolLM2-135M-Instruct baselines --watch</pre></div>` : html`<${Wide} label="Sweeps"><table><caption class="unseen">Sweeps</caption>
      <thead><tr><th scope="col">Status</th><th scope="col">Sweep</th><th scope="col">Members</th><th scope="col">Age</th></tr></thead>
      <tbody>${rows.map((/** @type {any} */ one) => html`<tr key=${one.id}><td><${Status} status=${one.status} /></td><th scope="row"><a href=${`/ui/sweeps/${one.id}`}>${one.name}</a><br /><span class="small">${one.model} · <code>${one.id.slice(-8)}</code></span></th>
        <td>${Object.entries(one.counts).map(([status, many]) => `${many} ${status}`).join(", ")}</td><td><${Time} iso=${one.created_at} relative=${true} /></td></tr>`)}</tbody></table><//>`}
    <nav class="pages" aria-label="Pages of the list">${after && html`<a href=${withQuery({ after: null })}>First page</a>`} ${found.data?.has_more && html`<a href=${withQuery({ after: found.data.next_cursor })}>Next page</a>`}</nav><//>`;
}
