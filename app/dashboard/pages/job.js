// @ts-check
import { html, useEffect, useState } from "../vendor/preact-htm.js";
import { ApiError, get } from "../lib/api.js";
import { ACTIVE, navigate, useDocument, whole } from "../lib/hooks.js";
import { Announce, Bar, Loaded, Status, Time, Wide } from "../lib/parts.js";
import { Layers } from "../charts/layers.js";
import { Stages } from "../charts/stages.js";
import * as words from "../lib/words.js";
import { Actions, LabelsEditor } from "./actions.js";
import { Costs } from "./costs.js";
import { Log } from "./log.js";

/** @param {{id: string, who: any}} props */
export function Job({ id, who }) {
  useEffect(() => {
    if (!/^job_[0-9a-f]{32}$/.test(id)) whole(id).then((found) => navigate(`/ui/jobs/${found}`, true), () => {});
  }, [id]);
  const found = useDocument(`/jobs/${encodeURIComponent(id)}`, (event) => (event.type === "job" || event.type === "gone") && event.data.id === id);
  if (found.error?.status === 404) return html`<h1>No such job</h1><div class="notice bad" role="alert"><p>${found.error.message}</p>${found.error.problem?.request_id && html`<p class="small">Request ${found.error.problem.request_id}</p>`}</div><p><a href="/ui/jobs">All jobs</a></p>`;
  return html`<${Loaded} ...${found}>${found.data && html`<${Whole} job=${found.data} who=${who} refresh=${found.refresh} />`}<//>`;
}

/** @param {{job: any, who: any, refresh: () => void}} props */
function Whole({ job, who, refresh }) {
  const rows = job.result?.rows || [];
  const title = `${job.model} · ${job.recipe.metadata.name}`;
  const fraction = job.progress?.overall_fraction;
  useEffect(() => {
    document.title = `${job.status === "running" && fraction != null ? `● ${Math.round(100 * fraction)}% ` : ""}${title} · spq`;
  }, [job.status, fraction]);
  return html`
    <h1>${title}</h1>
    <p class="facts"><${Status} status=${job.status} /> ${job.attempt > 1 && html`<span title=${job.last_attempt ? `attempt ${job.last_attempt.number} ended: ${job.last_attempt.reason}` : undefined}>attempt ${job.attempt} of ${job.max_attempts}</span>`}${job.retry_of && html` <span>asks for what <a href=${`/ui/jobs/${job.retry_of}`}>an earlier job</a> did</span>`} ${job.started_at && html`<span>${words.between(job.started_at, job.finished_at)}</span>`} <span><${Time} iso=${job.created_at} /></span> <code>${job.id}</code></p>
    <${Actions} job=${job} who=${who} refresh=${refresh} />
    <${LabelsEditor} job=${job} who=${who} refresh=${refresh} />
    <${Verdict} job=${job} />
    ${ACTIVE.includes(job.status) && html`<${Progress} job=${job} />`}
    ${rows.length > 0 && html`<${Figures} job=${job} />`}
    <${Gates} gates=${job.result?.gates || []} />
    <${Costs} result=${job.result} />
    ${!ACTIVE.includes(job.status) && job.stages.length > 0 && html`<h2 id="stages">Stages</h2><${Stages} stages=${job.stages} />`}
    <${Part} title="Layers" path=${`/jobs/${job.id}/layers?limit=1000`} show=${(/** @type {any} */ page) => html`<${Layers} layers=${page.data} />`} />
    ${job.status === "succeeded" && !job.artifact_expired_at && html`<${Part} title="Model card" path=${`/jobs/${job.id}/artifacts/README.md`} load=${text} show=${(/** @type {string} */ card) => html`<pre>${card}</pre>`} />`}
    <${Files} job=${job} />
    <section><h2>Recipe</h2><details><summary>${job.recipe.metadata.name}, <code>${job.recipe_sha256.slice(0, 12)}</code></summary><pre>${JSON.stringify(job.recipe, null, 1)}</pre></details>
      <details><summary>Request</summary><pre>${JSON.stringify(job.request, null, 1)}</pre></details></section>
    <${Part} title="Events" path=${`/jobs/${job.id}/events?limit=1000`} show=${(/** @type {any} */ page) => html`<${Events} events=${page.data} />`} />
    <section><h2 id="log">Log</h2><${Log} id=${job.id} isActive=${ACTIVE.includes(job.status)} /></section>
    <${Announce} text=${`job ${job.status}`} />`;
}

/** @param {{job: any}} props */
function Verdict({ job }) {
  if (job.error) {
    return html`<div class="notice bad" role="status"><p><strong>${job.error.code}</strong>: ${job.error.message}</p><p>${words.remedy(job.error.code)}</p></div>`;
  }
  if (job.result?.missing) return html`<div class="notice warn"><p>No figures: ${job.result.missing.message}. ${words.remedy("evaluation_failed")}</p></div>`;
  if (!job.verdict) return null;
  return html`<div class=${`notice ${job.verdict.word === "better" ? "good" : job.verdict.word === "worse" ? "bad" : "warn"}`}><p><strong>${words.verdict(job.verdict.word)}</strong>. ${job.verdict.sentence}</p></div>`;
}

/** @param {{job: any}} props */
function Progress({ job }) {
  const progress = job.progress;
  const text = words.happening({ ...job, stage_number: job.stages.findIndex((/** @type {any} */ one) => one.state === "running") + 1 || null, stage_count: job.stages.length, estimated_finish_at: progress?.estimated_finish_at, error: null, verdict: null, missing: null });
  return html`<section><h2>Progress</h2>
    ${job.status !== "queued" && html`<${Bar} value=${progress?.overall_fraction} label="progress of the job" text=${text} />`}
    <p>${text}${progress?.message ? ` · ${progress.message}` : ""}</p>
    ${progress && html`<p class="small">heard from it <${Time} iso=${progress.updated_at} relative=${true} /></p>`}
    <${Stages} stages=${job.stages} /></section>`;
}

/** @param {{job: any}} props */
function Figures({ job }) {
  const rows = job.result.rows;
  const texts = [...new Set([rows[0].dataset, ...Object.keys(job.result.texts || {})])];
  const [text, setText] = useState(texts[0]);
  const source = rows[0];
  const quality = (/** @type {any} */ row) => (text !== row.dataset && job.result.texts?.[text]?.[row.name]) || row;
  const tasks = Object.keys(rows[rows.length - 1].tasks || {});
  const last = quality(rows[rows.length - 1]);
  const short = (last.windows ?? 99) < 8 || (last.tokens ?? 9e9) < 5000;
  return html`<section><h2 id="figures">Before and after</h2>
    ${texts.length > 1 && html`<label>Text <select onChange=${(/** @type {any} */ e) => setText(e.target.value)}>${texts.map((one) => html`<option value=${one} selected=${one === text}>${one}</option>`)}</select></label>`}
    <${Wide} label="Figures before and after"><table><caption class="unseen">Figures on ${text}</caption>
      <thead><tr><th scope="col">Model</th><th scope="col" class="figure">Bytes</th><th scope="col" class="figure">of source</th><th scope="col" class="figure">In memory</th><th scope="col" class="figure">Perplexity</th><th scope="col" class="figure">to source</th><th scope="col" class="figure">KL</th><th scope="col" class="figure">Top-1</th><th scope="col" class="figure">Prefill</th><th scope="col" class="figure">Decoding</th></tr></thead>
      <tbody>${rows.map((/** @type {any} */ row) => {
        const own = quality(row);
        return html`<tr key=${row.name}><th scope="row">${row.name}${row.origin && html` <span class="small" title=${`measured ${row.origin.at || ""} for ${row.origin.by || "an earlier job"}`}>known before</span>`}</th>
          <td class="figure">${words.bytes(row.bytes_on_disk)}</td><td class="figure">${words.share(row.bytes_on_disk / source.bytes_on_disk)}</td><td class="figure">${words.bytes(row.resident_bytes)}</td>
          <td class="figure">${words.withError(own.perplexity, own.perplexity_se, 4)}</td><td class="figure">${words.change(own.perplexity_ratio, own.perplexity_ratio_se)}</td>
          <td class="figure">${words.withError(own.kl, own.kl_se)}</td><td class="figure">${words.share(own.top1)}${own.top1_se ? ` ± ${words.share(own.top1_se)}` : ""}</td>
          <td class="figure">${words.times(row.prefill_tokens_per_second && row.prefill_tokens_per_second / source.prefill_tokens_per_second)}</td><td class="figure">${words.times(row.decode_tokens_per_second && row.decode_tokens_per_second / source.decode_tokens_per_second)}</td></tr>`;
      })}</tbody></table><//>
    ${short && html`<p class="notice warn">A try, not a result: ${words.count(last.tokens)} predicted tokens in ${words.count(last.windows)} windows.</p>`}
    <p class="small">${text}, ${words.count(last.windows)} windows, ${words.count(last.tokens)} predicted tokens. ± is one standard error.${source.decode_tokens_per_second ? " Speeds are times the source's." : ""}${last.compared ? ` Perplexity: ${last.compared}.` : ""} ${calibrated(job)}</p>
    ${tasks.length > 0 && html`<${Wide} label="Tasks"><table><caption>Tasks</caption><thead><tr><th scope="col">Task</th>${rows.map((/** @type {any} */ row) => html`<th scope="col" class="figure">${row.name}</th>`)}</tr></thead><tbody>${tasks.map((task) => html`<tr><th scope="row">${task}</th>${rows.map((/** @type {any} */ row) => html`<td class="figure">${score(row.tasks?.[task])}</td>`)}</tr>`)}</tbody></table><//>`}
  </section>`;
}

/** Which text the recipe looked at; another one may have taken its place. @param {any} job */
function calibrated(job) {
  const text = job.result.compression?.calibration;
  return text?.dataset ? `Calibrated on ${text.dataset}${text.origin ? ` (${text.origin})` : ""}.` : "";
}

/** @param {any} figures */
function score(figures) {
  if (!figures) return "–";
  const name = ["acc_norm", "acc", "exact_match_strict-match", "exact_match"].find((one) => figures[one] != null) || Object.keys(figures)[0];
  return words.withError(figures[name], figures[`${name}_se`]);
}

/** @param {{gates: any[]}} props */
const Gates = ({ gates }) => gates.length === 0 ? null : html`<section><h2>Gates</h2><${Wide} label="Gates"><table><caption class="unseen">Limits of the recipe</caption><thead><tr><th scope="col">Figure</th><th scope="col">Text</th><th scope="col" class="figure">Limit</th><th scope="col" class="figure">Measured</th><th scope="col">Kept</th></tr></thead>
  <tbody>${gates.map((one) => html`<tr><th scope="row">${one.figure}</th><td>${one.dataset || "–"}</td><td class="figure">${one.kind === "max" ? "≤" : "≥"} ${words.number(one.limit)}</td><td class="figure">${words.number(one.measured, 4)}</td><td>${one.passed == null ? "? not measured" : one.passed ? "● yes" : "✕ no"}</td></tr>`)}</tbody></table><//></section>`;

/** A numbered list with all its pages. @param {string} path */
async function pages(path) {
  const data = [];
  let page = await get(path);
  for (data.push(...page.data); page.has_more; data.push(...page.data)) page = await get(`${path}&after=${page.next_after}`);
  return { ...page, data };
}

/** A file of the artifact, as the text that it is. @param {string} path */
async function text(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new ApiError(answer.status, "no_file", "There is no model card.");
  return answer.text();
}

/** A part that is fetched when it is opened. @param {{title: string, path: string, show: (data: any) => any, load?: (path: string) => Promise<any>}} props */
function Part({ title, path, show, load = pages }) {
  const [open, setOpen] = useState(false);
  const [state, set] = useState({ data: /** @type {any} */ (null), error: /** @type {any} */ (null) });
  useEffect(() => {
    if (open) load(path).then((data) => set({ data, error: null }), (error) => set({ data: null, error }));
  }, [open, path]);
  return html`<section><h2>${title}</h2><details onToggle=${(/** @type {any} */ event) => setOpen(event.target.open)}><summary>Show ${title.toLowerCase()}</summary>${open && html`<${Loaded} ...${state} since=${0}>${state.data && show(state.data)}<//>`}</details></section>`;
}

/** @param {{job: any}} props */
function Files({ job }) {
  if (job.artifact_expired_at) return html`<section><h2>Files</h2><p>The artifact was removed <${Time} iso=${job.artifact_expired_at} />; its figures stay.</p></section>`;
  if (ACTIVE.includes(job.status)) return null;
  return html`<${Part} title="Files" path=${`/jobs/${job.id}/artifacts`} show=${(/** @type {any} */ page) => page.data.length === 0 ? html`<p>There is no artifact.</p>` : html`
    <p><a class="button" href=${`/jobs/${job.id}/archive`} download>Download everything (tar, ${words.bytes(page.data.reduce((/** @type {number} */ sum, /** @type {any} */ file) => sum + file.bytes, 0))})</a></p>
    <${Wide} label="Files"><table><caption class="unseen">Files</caption><thead><tr><th scope="col">File</th><th scope="col" class="figure">Size</th><th scope="col">sha256</th></tr></thead><tbody>${page.data.map((/** @type {any} */ file) => html`<tr key=${file.path}><th scope="row"><a href=${file.url} download>${file.path}</a></th><td class="figure">${words.bytes(file.bytes)}</td><td><code>${file.sha256.slice(0, 16)}</code></td></tr>`)}</tbody></table><//>`} />`;
}

/** @param {{events: any[]}} props */
function Events({ events }) {
  const [problems, setProblems] = useState(false);
  const shown = problems ? events.filter((one) => one.data.error || one.data.reason) : events;
  return html`<label><input type="checkbox" onChange=${(/** @type {any} */ e) => setProblems(e.target.checked)} /> problems only</label>
    <${Wide} label="Events"><table><caption class="unseen">Events</caption><thead><tr><th scope="col">Number</th><th scope="col">Time</th><th scope="col">Attempt</th><th scope="col">What</th></tr></thead>
    <tbody>${shown.map((one) => html`<tr key=${one.seq}><td>${one.seq}</td><td><${Time} iso=${one.at} /></td><td>${one.attempt}</td><td>${one.type === "status" ? one.data.status : `${one.data.stage}: ${one.data.done} of ${one.data.total}`} ${one.data.reason || ""} ${one.data.error ? `${one.data.error.code}: ${one.data.error.message}` : ""}</td></tr>`)}</tbody></table><//>`;
}
