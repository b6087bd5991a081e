// @ts-check
// What can be done with a job, and its labels.
import { html, useState } from "../vendor/preact-htm.js";
import { post, request } from "../lib/api.js";
import { ACTIVE, navigate } from "../lib/hooks.js";
import { Copy, Question } from "../lib/parts.js";

/** @param {{job: any, who: any, refresh: () => void}} props */
export function Actions({ job, who, refresh }) {
  const [question, setQuestion] = useState("");
  const [report, setReport] = useState("");
  const may = who.scopes.includes("jobs:write");
  const why = may ? undefined : "this key lacks the scope jobs:write";
  const isActive = ACTIVE.includes(job.status);
  const act = async () => {
    const action = question;
    setQuestion("");
    try {
      if (action === "Delete") {
        await request("DELETE", `/jobs/${job.id}`);
        navigate("/ui/jobs");
        return;
      }
      const made = await post(`/jobs/${job.id}/${action.toLowerCase()}`);
      if (made && made.id !== job.id) navigate(`/ui/jobs/${made.id}`);
      else refresh();
    } catch (error) {
      setReport(/** @type {any} */ (error).message);
    }
  };
  const command = `spq jobs watch ${job.id}`;
  const curl = `curl -H "Authorization: Bearer $SPQ_API_KEY" ${location.origin}/jobs/${job.id}`;
  return html`<p class="actions">
      ${isActive && html`<button type="button" disabled=${!may} title=${why} onClick=${() => setQuestion("Cancel")}>Cancel</button>`}
      ${["failed", "canceled"].includes(job.status) && html`<button type="button" disabled=${!may} title=${why} onClick=${() => setQuestion("Retry")}>Retry</button>`}
      ${!isActive && job.result?.compression && !job.artifact_expired_at && html`<button type="button" disabled=${!may} title=${why} onClick=${() => setQuestion("Measure")}>Measure again</button>`}
      ${!isActive && html`<button type="button" disabled=${!may} title=${why} onClick=${() => setQuestion("Delete")}>Delete</button>`}
      <a class="button" href=${`/ui/new?from=${job.id}`}>Edit and submit again</a>
      <a class="button" href=${`/ui/compare?jobs=${job.id}`}>Compare</a>
      ${job.sweep_id && html`<a class="button" href=${`/ui/sweeps/${job.sweep_id}`}>Its sweep</a>`}
      <${Copy} text=${job.id} label="Copy id" /> <${Copy} text=${command} label="Copy command" /> <${Copy} text=${curl} label="Copy curl" />
    </p>
    ${report && html`<p class="notice bad" role="alert">${report}</p>`}
    <${Question} open=${question !== ""} title=${`${question} this job?`} action=${question || "Do it"} onDone=${act} onClose=${() => setQuestion("")}>
      <p>${{ Cancel: job.status === "queued" ? "No worker will take it." : "Its worker is asked to stop; what it found so far stays.", Measure: "A new job measures its artifact as this one did, and compresses nothing. For other texts or tasks: spq jobs measure.", Retry: "A new job asks for the same.", Delete: "The job, its figures and its artifact are gone for good." }[/** @type {"Cancel"} */ (question)] || ""}</p>
    <//>`;
}

/** @param {{job: any, who: any, refresh: () => void}} props */
export function LabelsEditor({ job, who, refresh }) {
  const [error, setError] = useState("");
  const change = async (/** @type {Record<string, string | null>} */ labels) => {
    try {
      await request("PATCH", `/jobs/${job.id}`, { labels });
      setError("");
      refresh();
    } catch (refused) {
      setError(/** @type {any} */ (refused).message);
    }
  };
  const add = (/** @type {any} */ event) => {
    event.preventDefault();
    const [name, ...value] = String(new FormData(event.target).get("label") || "").split("=");
    if (name) change({ [name.trim()]: value.join("=").trim() });
    event.target.reset();
  };
  const may = who.scopes.includes("jobs:write");
  return html`<div class="labels">${Object.keys(job.labels).map((name) => html`<span class="label">${name}=${job.labels[name]} ${may && html`<button type="button" class="quiet" aria-label=${`remove label ${name}`} onClick=${() => change({ [name]: null })}>×</button>`}</span>`)}
    ${may && html`<form onSubmit=${add}><label class="unseen" for="label">New label</label><input id="label" name="label" placeholder="name=value" size="14" /> <button class="quiet">Add label</button></form>`}
    ${error && html`<span class="bad" role="alert">${error}</span>`}</div>`;
}
