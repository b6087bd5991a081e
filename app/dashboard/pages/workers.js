// @ts-check
import { html } from "../vendor/preact-htm.js";
import { useDocument } from "../lib/hooks.js";
import { Loaded, Status, Time, Wide } from "../lib/parts.js";
import * as words from "../lib/words.js";

export function Workers() {
  const found = useDocument("/workers", (event) => event.type === "workers");
  const rows = found.data?.data || [];
  const versions = rows.map((/** @type {any} */ one) => JSON.stringify(one.facts.versions));
  const usual = versions.sort((/** @type {string} */ one, /** @type {string} */ other) => versions.filter((/** @type {string} */ v) => v === other).length - versions.filter((/** @type {string} */ v) => v === one).length)[0];
  return html`<h1>Workers</h1><${Loaded} ...${found}>
    <p>${found.data?.queued === 1 ? "One job waits." : `${words.count(found.data?.queued)} jobs wait.`}</p>
    ${rows.length === 0 ? html`<div class="notice warn"><p>No worker is there: jobs wait until one comes. Start one with <code>spq worker</code>, or <code>docker compose up worker</code>.</p></div>` : html`<${Wide} label="Workers"><table><caption class="unseen">Workers</caption>
      <thead><tr><th scope="col">Worker</th><th scope="col">State</th><th scope="col">Job</th><th scope="col">Device</th><th scope="col">Limits of a run</th><th scope="col">Kept from</th><th scope="col">Versions</th><th scope="col">Seen</th></tr></thead>
      <tbody>${rows.map((/** @type {any} */ one) => html`<tr key=${one.id}><th scope="row">${one.id}</th><td><${Status} status=${one.state} /></td>
        <td>${one.job ? (one.job.id ? html`<a href=${`/ui/jobs/${one.job.id}`}>${one.job.model}</a><br /><span class="small">${one.job.stage}</span>` : "another tenant's") : "–"}</td>
        <td>${one.facts.device || "?"}, ${one.facts.threads || "?"} threads</td><td>${words.bytes(one.facts.max_run_bytes)} memory, ${words.bytes(one.facts.max_run_disk_bytes)} disk</td>
        <td>${(one.facts.isolation || []).join(", ") || "nothing"}</td>
        <td class=${JSON.stringify(one.facts.versions) === usual ? "" : "odd"}>${Object.entries(one.facts.versions || {}).map(([name, value]) => `${name} ${value}`).join(", ")}</td><td><${Time} iso=${one.seen_at} relative=${true} /></td></tr>`)}</tbody></table><//>`}<//>`;
}
