// @ts-check
import { html, useEffect, useMemo, useRef, useState } from "../vendor/preact-htm.js";
import { post } from "../lib/api.js";
import { navigate, useDocument, withQuery } from "../lib/hooks.js";
import { listen } from "../lib/live.js";
import { Announce, Bar, Labels, Loaded, Question, Status, Time, Wide } from "../lib/parts.js";
import * as words from "../lib/words.js";
import { Views } from "./views.js";

const STATUSES = ["queued", "running", "succeeded", "failed", "canceled"];
const FILTERS = ["status", "model", "recipe", "sweep", "q", "created_after", "created_before"];
const SORTS = [["-created_at", "newest first"], ["created_at", "oldest first"], ["kl", "smallest KL"], ["bytes_ratio", "smallest"], ["perplexity_ratio", "best perplexity"], ["model", "model"]];
const PAGE = 50;

/** @param {URLSearchParams} query */
function filters(query) {
  const kept = new URLSearchParams();
  for (const [name, value] of query) if (FILTERS.includes(name) || name.startsWith("label.")) kept.set(name, value);
  return kept;
}

/** @param {{query: URLSearchParams, who: any}} props */
export function Jobs({ query, who }) {
  const chosen = filters(query);
  const rows = new URLSearchParams(chosen);
  rows.set("view", "row");
  rows.set("limit", String(PAGE));
  for (const name of ["sort", "after"]) if (query.get(name)) rows.set(name, query.get(name) || "");
  const counted = new URLSearchParams(chosen);
  counted.delete("status");
  const list = useDocument(`/jobs?${rows}`, (event) => event.type === "gone" || (event.type === "job" && !known.current.has(event.data.id)));
  const counts = useDocument(`/jobs/counts?${counted}`, (event) => event.type === "job" || event.type === "gone");
  const known = useRef(new Set());
  const [fresh, setFresh] = useState(/** @type {Record<string, any>} */ ({}));
  const [told, setTold] = useState("");
  useEffect(() => listen((event) => {
    if (event.type !== "job") return;
    setFresh((old) => ({ ...old, [event.data.id]: event.data }));
    if (["succeeded", "failed", "canceled"].includes(event.data.status)) setTold(`job ${event.data.id.slice(-6)} ${event.data.status}`);
  }), []);
  const data = useMemo(() => {
    const shown = (list.data?.data || []).map((/** @type {any} */ row) => (fresh[row.id]?.version > row.version ? fresh[row.id] : row));
    known.current = new Set(shown.map((/** @type {any} */ row) => row.id));
    return shown;
  }, [list.data, fresh]);
  const [selected, setSelected] = useState(/** @type {string[]} */ ([]));
  const [question, setQuestion] = useState("");
  const [report, setReport] = useState("");
  const picked = selected.filter((id) => known.current.has(id));
  const pick = (/** @type {string} */ id) => setSelected(selected.includes(id) ? selected.filter((one) => one !== id) : [...selected, id]);
  const act = async () => {
    try {
      const done = await post("/jobs/batch", { action: question, ids: picked });
      const parts = [`${done.done.length} done`];
      if (done.passed_over.length) parts.push(`${done.passed_over.length} left as they are`);
      if (done.refused.length) parts.push(`${done.refused.length} refused: ${done.refused[0].detail}`);
      setReport(`${question}: ${parts.join(", ")}`);
      setSelected([]);
      list.refresh();
    } catch (error) {
      setReport(/** @type {any} */ (error).message);
    }
    setQuestion("");
  };
  const mayWrite = who.scopes.includes("jobs:write");
  const why = mayWrite ? undefined : "this key lacks the scope jobs:write";
  const narrowed = [...chosen.keys()].length > 0;
  return html`
    <h1>Jobs</h1>
    <p class="chips" role="group" aria-label="Status">
      <a href=${withQuery({ status: null, after: null })} aria-current=${query.get("status") ? undefined : "true"}>all ${counts.data ? words.count(counts.data.total) : ""}</a>
      ${STATUSES.map((status) => html`<a href=${withQuery({ status, after: null })} aria-current=${query.get("status") === status ? "true" : undefined}><span aria-hidden="true">${words.symbol(status)}</span> ${status} ${counts.data ? words.count(counts.data.by_status[status]) : ""}</a>`)}
    </p>
    <${Search} query=${query} />
    ${["sweep", "created_after", "created_before"].filter((name) => query.get(name)).map((name) => html`<p class="chips"><a href=${withQuery({ [name]: null, after: null })} aria-label=${`no longer only ${name} ${query.get(name)}`}>${name.replace("_", " ")} ${query.get(name)} <span aria-hidden="true">×</span></a></p>`)}
    <${Views} query=${query} />
    ${picked.length > 0 && html`<p class="actions" role="group" aria-label="Selected jobs">
      <span>${picked.length} selected</span>
      <a class="button" href=${`/ui/compare?jobs=${picked.join(",")}`}>Compare</a>
      ${["cancel", "retry", "delete"].map((action) => html`<button type="button" disabled=${!mayWrite} title=${why} onClick=${() => setQuestion(action)}>${action}</button>`)}
      <button type="button" class="quiet" onClick=${() => setSelected([])}>clear</button>
    </p>`}
    ${report && html`<p class="notice" role="status">${report}</p>`}
    <${Loaded} ...${list}>
      ${data.length === 0 ? html`<${Empty} narrowed=${narrowed} chosen=${chosen} />` : html`<${Table} rows=${data} picked=${picked} pick=${pick} />`}
      <nav class="pages" aria-label="Pages of the list">
        ${query.get("after") && html`<a href=${withQuery({ after: null })}>First page</a>`}
        ${list.data?.has_more && html`<a href=${withQuery({ after: list.data.next_cursor })} rel="next">Next page</a>`}
      </nav>
    <//>
    <${Announce} text=${told} />
    <${Question} open=${question !== ""} title=${`${question} ${picked.length} job${picked.length === 1 ? "" : "s"}?`} action=${question || "do it"} onDone=${act} onClose=${() => setQuestion("")}>
      <ul>${picked.slice(0, 10).map((id) => html`<li><code>${id}</code></li>`)}</ul>${picked.length > 10 && html`<p>and ${picked.length - 10} more</p>`}
    <//>`;
}

/** @param {{query: URLSearchParams}} props */
function Search({ query }) {
  const send = (/** @type {any} */ event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const said = String(form.get("q") || "").trim();
    const isLabel = /^[\w.\-/]+=.+$/.test(said);
    const label = isLabel ? said : String(form.get("label") || "");
    /** @type {Record<string, string | null>} */
    const changes = { q: isLabel ? "" : said, model: String(form.get("model") || ""), recipe: String(form.get("recipe") || ""), sort: String(form.get("sort") || ""), after: null };
    for (const name of query.keys()) if (name.startsWith("label.")) changes[name] = null;
    if (label.includes("=")) changes[`label.${label.slice(0, label.indexOf("="))}`] = label.slice(label.indexOf("=") + 1);
    navigate(withQuery(changes));
  };
  const label = [...query].find(([name]) => name.startsWith("label."));
  return html`<form class="filters" role="search" onSubmit=${send} key=${query.toString()}>
    <label>Search <input name="q" type="search" id="search" defaultValue=${query.get("q") || ""} placeholder="id, model, recipe, label" /></label>
    <label>Model <input name="model" defaultValue=${query.get("model") || ""} /></label>
    <label>Recipe <input name="recipe" defaultValue=${query.get("recipe") || ""} /></label>
    <label>Label <input name="label" pattern="[^=]+=.+" title="name=value" defaultValue=${label ? `${label[0].slice(6)}=${label[1]}` : ""} placeholder="name=value" /></label>
    <label>Order <select name="sort">${SORTS.map(([value, title]) => html`<option value=${value} selected=${(query.get("sort") || "-created_at") === value}>${title}</option>`)}</select></label>
    <button>Show</button>
  </form>`;
}

const COLUMNS = ["Status", "Model and recipe", "What happens", "Size", "KL", "Perplexity", "Decoding", "Age"];
const FIGURES = new Set(["Size", "KL", "Perplexity", "Decoding"]);

/** Rows become cards where a screen is narrow; the roles stay those of a table. @param {{rows: any[], picked: string[], pick: (id: string) => void}} props */
function Table({ rows, picked, pick }) {
  return html`<${Wide} label="Jobs"><table class="cards" role="table">
    <caption class="unseen">Jobs and what came of them</caption>
    <thead role="rowgroup"><tr role="row"><th scope="col" role="columnheader"><span class="unseen">Select</span></th>${COLUMNS.map((name) => html`<th scope="col" role="columnheader" class=${FIGURES.has(name) ? "figure" : ""}>${name}</th>`)}</tr></thead>
    <tbody role="rowgroup">${rows.map((row) => html`<${Row} key=${row.id} row=${row} picked=${picked.includes(row.id)} pick=${pick} />`)}</tbody>
  </table><//>`;
}

/** @param {{row: any, picked: boolean, pick: (id: string) => void}} props */
function Row({ row, picked, pick }) {
  const figures = row.figures;
  const unsure = figures?.compared && /no difference|too little/.test(figures.compared);
  return html`<tr role="row">
    <td role="cell"><input type="checkbox" checked=${picked} onChange=${() => pick(row.id)} aria-label=${`select ${row.model} ${row.recipe}`} /></td>
    <td role="cell"><${Status} status=${row.status} /></td>
    <th scope="row" role="rowheader"><a href=${`/ui/jobs/${row.id}`}>${row.model}</a><br /><span class="small">${row.recipe} · <code>${row.id.slice(-8)}</code>${row.sweep_member ? ` · member ${row.sweep_member}` : ""} <${Labels} labels=${row.labels} /></span></th>
    <td role="cell" class="what">${row.status === "running" && html`<${Bar} value=${row.overall_fraction} label=${`progress of ${row.model}`} text=${words.happening(row)} />`}<span>${words.happening(row)}</span></td>
    <td role="cell" data-label="Size" class="figure">${figures ? html`${words.bytes(figures.bytes_on_disk)}<br /><span class="small">${words.share(figures.bytes_ratio)}</span>` : "–"}</td>
    <td role="cell" data-label="KL" class="figure">${figures ? words.withError(figures.kl, figures.kl_se) : "–"}</td>
    <td role="cell" data-label="Perplexity" class=${`figure ${unsure ? "unsure" : ""}`} title=${figures?.compared || undefined}>${figures ? html`${words.number(figures.source_perplexity, 4)} → ${words.number(figures.perplexity, 4)}` : "–"}</td>
    <td role="cell" data-label="Decoding" class="figure">${figures ? words.times(figures.decode_ratio) : "–"}</td>
    <td role="cell" data-label="Age" class="age"><${Time} iso=${row.created_at} relative=${true} /><br /><span class="small">${words.between(row.started_at, row.finished_at)}</span></td>
  </tr>`;
}

/** @param {{narrowed: boolean, chosen: URLSearchParams}} props */
const Empty = ({ narrowed, chosen }) => narrowed
  ? html`<p class="notice">No job is like that (${[...chosen].map(([name, value]) => `${name === "q" ? "search" : name} ${value}`).join(", ")}). <a href="/ui/jobs">Clear filters</a></p>`
  : html`<div class="notice"><p>No jobs yet. <a href="/ui/new">Make one</a>, or from a terminal:</p><pre>spq jobs submit HuggingFaceTB/SmolLM2-135M-Instruct --recipe balanced
spq jobs watch JOB
spq jobs download JOB</pre></div>`;
