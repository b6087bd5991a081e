// @ts-check
import { html, useEffect, useState } from "../vendor/preact-htm.js";
import { get } from "../lib/api.js";
import { navigate, whole, withQuery } from "../lib/hooks.js";
import { Loaded, Status, Wide } from "../lib/parts.js";
import { Scatter } from "../charts/scatter.js";
import * as words from "../lib/words.js";

const MOST = 20;
const AXES = {
  bytes: { title: "bytes on disk", of: (/** @type {any} */ row) => row.bytes_on_disk, text: words.bytes },
  decode: { title: "decoding, times the source's", of: (/** @type {any} */ row, /** @type {any} */ source) => row.decode_tokens_per_second / source.decode_tokens_per_second, text: words.number },
  kl: { title: "KL from the source, nats per token", of: (/** @type {any} */ row) => row.kl, error: "kl_se", log: true },
  perplexity: { title: "perplexity", of: (/** @type {any} */ row) => row.perplexity, error: "perplexity_se" },
  top1: { title: "top-1 agreement", of: (/** @type {any} */ row) => row.top1 },
};

/** Jobs that were measured on the same text in the same way can be compared. @param {any} job */
function measuredOn(job) {
  const row = job.result?.rows?.[0];
  return row ? `${job.model} ${job.source_commit || ""} · ${row.dataset}, ${row.windows} windows, ${row.tokens} tokens` : "";
}

/** @param {any} value @param {string} [path] @returns {[string, string][]} */
function leaves(value, path = "") {
  if (value === null || typeof value !== "object") return [[path, String(value)]];
  return Object.entries(value).flatMap(([name, one]) => leaves(one, path ? `${path}.${name}` : name));
}

/** @param {{query: URLSearchParams}} props */
export function Compare({ query }) {
  const ids = (query.get("jobs") || "").split(",").filter(Boolean);
  const [state, set] = useState({ data: /** @type {any} */ (null), error: /** @type {any} */ (null) });
  useEffect(() => {
    if (!ids.length) return;
    get(`/jobs?limit=100&ids=${ids.slice(0, MOST).join(",")}`).then((page) => set({ data: page.data, error: null }), (error) => set({ data: null, error }));
  }, [query.get("jobs")]);
  const [refused, setRefused] = useState("");
  const add = async (/** @type {any} */ event) => {
    event.preventDefault();
    const more = String(new FormData(event.target).get("id") || "").trim();
    if (!more) return;
    try {
      const found = await whole(more);
      setRefused("");
      navigate(withQuery({ jobs: [...new Set([...ids, found])].join(",") }));
    } catch (error) {
      setRefused(/** @type {any} */ (error).message);
    }
  };
  const leave = (/** @type {string} */ id) => navigate(withQuery({ jobs: ids.filter((one) => one !== id).join(",") }));
  return html`<h1>Compare</h1>
    <form class="filters" onSubmit=${add}><label>Add a job <input name="id" placeholder="job_…" size="40" /></label> <button>Add</button></form>
    ${refused && html`<p class="notice bad" role="alert">${refused}</p>`}
    ${ids.length > 0 && html`<p class="chips">${ids.map((id) => html`<button type="button" class="quiet" aria-label=${`leave out ${id}`} onClick=${() => leave(id)}><code>${id.slice(-8)}</code> ×</button>`)}</p>`}
    ${ids.length === 0 ? html`<p class="notice">Select jobs in <a href="/ui/jobs">the list</a>, or add them by their ids.</p>` : html`<${Loaded} ...${state} since=${0}>${state.data && html`<${Groups} jobs=${state.data} query=${query} missing=${ids.filter((id) => !state.data.some((/** @type {any} */ job) => job.id === id))} />`}<//>`}
    ${ids.length > MOST && html`<p class="notice warn">Only the first ${MOST} are compared.</p>`}`;
}

/** @param {{jobs: any[], query: URLSearchParams, missing: string[]}} props */
function Groups({ jobs, query, missing }) {
  /** @type {Map<string, any[]>} */
  const groups = new Map();
  for (const job of jobs) groups.set(measuredOn(job), [...(groups.get(measuredOn(job)) || []), job]);
  const known = [...groups].filter(([name]) => name);
  const without = groups.get("") || [];
  return html`${missing.length > 0 && html`<p class="notice warn">There is no job ${missing.join(", ")}.</p>`}
    ${known.length > 1 && html`<p class="notice warn">These jobs were measured on different models, texts or numbers of windows. Figures of different groups say nothing about one another.</p>`}
    ${known.map(([name, group]) => html`<${Group} key=${name} name=${name} jobs=${group} query=${query} />`)}
    ${without.length > 0 && html`<h2>Without figures</h2><ul>${without.map((job) => html`<li><a href=${`/ui/jobs/${job.id}`}>${job.model} · ${job.recipe.metadata.name}</a> <${Status} status=${job.status} /></li>`)}</ul>`}
    <${Differences} jobs=${jobs} />`;
}

/** @param {{name: string, jobs: any[], query: URLSearchParams}} props */
function Group({ name, jobs, query }) {
  const x = query.get("x") === "decode" ? "decode" : "bytes";
  const y = /** @type {"kl"} */ (["kl", "perplexity", "top1"].includes(query.get("y") || "") ? query.get("y") : "kl");
  const across = AXES[x], up = AXES[y];
  const first = jobs[0].result.rows;
  const beside = first.slice(0, -1).filter((/** @type {any} */ row) => row.name === "int8");
  const all = [...beside.map((/** @type {any} */ row) => ({ name: "plain INT8", row, source: first[0], href: undefined, group: 1 })),
    ...jobs.map((job) => ({ name: job.recipe.metadata.name, row: job.result.rows[job.result.rows.length - 1], source: job.result.rows[0], href: `/ui/jobs/${job.id}`, group: 0, job }))];
  const points = all.map((one) => ({ x: across.of(one.row, one.source), y: up.of(one.row), error: "error" in up ? one.row[up.error] : null, name: one.name, href: one.href, group: one.group, front: false }));
  for (const one of points) one.front = !points.some((other) => other !== one && other.x <= one.x && better(other.y, one.y, y) && (other.x < one.x || other.y !== one.y));
  const best = (/** @type {(row: any) => number} */ of, /** @type {1 | -1} */ sign) => {
    const values = all.map((one) => of(one.row)).filter((value) => value != null);
    return values.length ? (sign > 0 ? Math.max(...values) : Math.min(...values)) : null;
  };
  const least = { bytes: best((row) => row.bytes_on_disk, -1), kl: best((row) => row.kl, -1), perplexity: best((row) => row.perplexity, -1), top1: best((row) => row.top1, 1) };
  const csv = ["name,bytes,kl,kl_se,perplexity,perplexity_se,top1", ...all.map((one) => [one.name, one.row.bytes_on_disk, one.row.kl, one.row.kl_se, one.row.perplexity, one.row.perplexity_se, one.row.top1].map((value) => (/^[=+\-@]/.test(String(value)) && typeof value === "string" ? `'${value}` : value ?? "")).join(","))].join("\n");
  return html`<section><h2>${name}</h2>
    <div class="filters">
      <label>Across <select onChange=${(/** @type {any} */ e) => navigate(withQuery({ x: e.target.value }), true)}>${["bytes", "decode"].map((one) => html`<option value=${one} selected=${one === x}>${AXES[/** @type {"bytes"} */ (one)].title}</option>`)}</select></label>
      <label>Up <select onChange=${(/** @type {any} */ e) => navigate(withQuery({ y: e.target.value }), true)}>${["kl", "perplexity", "top1"].map((one) => html`<option value=${one} selected=${one === y}>${AXES[/** @type {"kl"} */ (one)].title}</option>`)}</select></label>
      <a class="button" download="compare.csv" href=${`data:text/csv;charset=utf-8,${encodeURIComponent(csv)}`}>CSV</a>
    </div>
    <${Scatter} points=${points} x=${across.title} y=${up.title} log=${"log" in up} xText=${across.text} label=${`${up.title} against ${across.title}; the table below has every figure`} />
    <${Wide} label="Figures"><table><caption class="unseen">Figures; the best of each is marked</caption><thead><tr><th scope="col">Model</th><th scope="col" class="figure">Bytes</th><th scope="col" class="figure">of source</th><th scope="col" class="figure">KL</th><th scope="col" class="figure">Perplexity</th><th scope="col" class="figure">Top-1</th><th scope="col" class="figure">Decoding</th><th scope="col">Beside plain INT8</th></tr></thead>
    <tbody>${all.map((one) => html`<tr><th scope="row">${one.href ? html`<a href=${one.href}>${one.name}</a>` : one.name}</th>
      <td class="figure">${mark(one.row.bytes_on_disk, least.bytes, words.bytes(one.row.bytes_on_disk))}</td><td class="figure">${words.share(one.row.bytes_on_disk / one.source.bytes_on_disk)}</td>
      <td class="figure">${mark(one.row.kl, least.kl, words.withError(one.row.kl, one.row.kl_se))}</td><td class="figure">${mark(one.row.perplexity, least.perplexity, words.withError(one.row.perplexity, one.row.perplexity_se, 4))}</td>
      <td class="figure">${mark(one.row.top1, least.top1, words.share(one.row.top1))}</td><td class="figure">${words.times(one.row.decode_tokens_per_second && one.row.decode_tokens_per_second / one.source.decode_tokens_per_second)}</td>
      <td>${"job" in one && one.job.verdict ? words.verdict(one.job.verdict.word) : ""}</td></tr>`)}</tbody></table><//></section>`;
}

/** @param {number} one @param {number} other @param {string} axis */
const better = (one, other, axis) => (axis === "top1" ? one >= other : one <= other);

/** @param {any} value @param {any} best @param {string} text */
const mark = (value, best, text) => (value != null && value === best ? html`<strong title="the best of these">★ ${text}</strong>` : text);

/** What differs between the recipes, and nothing else. @param {{jobs: any[]}} props */
function Differences({ jobs }) {
  if (jobs.length < 2) return null;
  const maps = jobs.map((job) => new Map(leaves({ recipe: { ...job.recipe, metadata: undefined }, evaluation: job.request.evaluation })));
  const paths = [...new Set(maps.flatMap((one) => [...one.keys()]))].filter((path) => new Set(maps.map((one) => one.get(path))).size > 1).sort();
  return html`<section><h2>What differs</h2>${paths.length === 0 ? html`<p>Recipes and evaluation are the same.</p>` : html`<${Wide} label="What differs"><table><caption class="unseen">Settings that differ</caption><thead><tr><th scope="col">Setting</th>${jobs.map((job) => html`<th scope="col">${job.recipe.metadata.name} <code>${job.id.slice(-8)}</code></th>`)}</tr></thead>
    <tbody>${paths.map((path) => html`<tr><th scope="row"><code>${path}</code></th>${maps.map((one) => html`<td>${one.get(path) ?? "–"}</td>`)}</tr>`)}</tbody></table><//>`}</section>`;
}
