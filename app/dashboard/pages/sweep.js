// @ts-check
import { html, useState } from "../vendor/preact-htm.js";
import { post } from "../lib/api.js";
import { useDocument } from "../lib/hooks.js";
import { Bar, Loaded, Question, Status, Time, Wide } from "../lib/parts.js";
import { Scatter } from "../charts/scatter.js";
import * as words from "../lib/words.js";

const ENDED = ["finished", "failed", "canceled"];
const STOPPED = { infeasible: "too large by its estimate", target: "another reached the target", failures: "too many failed", canceled: "the sweep was canceled" };

/** @param {any} sweep */
function objective(sweep) {
  const asked = sweep.sweep.objective;
  const limits = Object.entries(asked.subject_to).flatMap(([name, limit]) => [[name, "at least", limit.min], [name, "at most", limit.max]]).filter((one) => one[2] != null).map((one) => one.join(" "));
  return `${asked.minimize ? "lowest" : "highest"} ${asked.minimize || asked.maximize}${limits.length ? ` with ${limits.join(", ")}` : ""}`;
}

/** @param {{id: string, who: any}} props */
export function Sweep({ id, who }) {
  const found = useDocument(`/sweeps/${encodeURIComponent(id)}`, (event) => event.type === "sweep" && event.data.id === id);
  return html`<${Loaded} ...${found}>${found.data && html`<${Whole} sweep=${found.data} who=${who} refresh=${found.refresh} />`}<//>`;
}

/** @param {{sweep: any, who: any, refresh: () => void}} props */
function Whole({ sweep, who, refresh }) {
  const [question, setQuestion] = useState("");
  const [report, setReport] = useState("");
  const may = who.scopes.includes("jobs:write");
  const ended = sweep.members.filter((/** @type {any} */ one) => ["succeeded", "failed", "canceled", "skipped"].includes(one.status)).length;
  const act = async () => {
    const action = question;
    setQuestion("");
    try {
      await post(`/sweeps/${sweep.id}/${action}`);
      refresh();
    } catch (error) {
      setReport(/** @type {any} */ (error).message);
    }
  };
  const over = ENDED.includes(sweep.status);
  const actions = [...(over ? [] : [sweep.status === "paused" ? "resume" : "pause", "cancel"]), ...(sweep.members.some((/** @type {any} */ one) => ["failed", "canceled"].includes(one.status) || one.final?.status === "failed") ? ["retry"] : [])];
  const [x, y] = sweep.sweep.front;
  const done = sweep.members.filter((/** @type {any} */ one) => one.row);
  const points = done.map((/** @type {any} */ one) => ({ x: one.row[x], y: one.row[y], error: one.row[`${y}_se`], name: called(one), href: one.job_id ? `/ui/jobs/${one.job_id}` : undefined, front: sweep.front.includes(one.number), best: sweep.best === one.number, group: one.status === "succeeded" ? 0 : 2 }));
  const int8 = sweep.beside.int8;
  const isMember = done.some((/** @type {any} */ one) => one.row[x] === int8?.[x] && one.row[y] === int8?.[y]);
  if (int8 && int8[x] != null && int8[y] != null && !isMember) points.push({ x: int8[x], y: int8[y], error: int8[`${y}_se`], name: "plain INT8", group: 1, front: false, best: false, href: undefined });
  return html`<h1>${sweep.name}</h1>
    <p class="facts"><${Status} status=${sweep.status} /> <span>${sweep.model}</span> <span>${objective(sweep)}</span> <span><${Time} iso=${sweep.created_at} /></span> <code>${sweep.id}</code></p>
    <p class="small">Measured on ${(sweep.evaluation?.perplexity || []).join(", ")}, ${sweep.evaluation?.limit ? `${words.count(sweep.evaluation.limit)} windows` : "all of it"}.</p>
    ${!over && html`<p><${Bar} value=${ended / sweep.members.length} label="members that have ended" text=${`${ended} of ${sweep.members.length}`} /> ${ended} of ${sweep.members.length} members${sweep.estimated_finish_at ? `; ${words.left(sweep.estimated_finish_at)}` : ""}${sweep.waits_for ? `; waits: ${sweep.waits_for}` : ""}</p>`}
    <p class="actions">${actions.map((action) => html`<button type="button" disabled=${!may} title=${may ? undefined : "this key lacks the scope jobs:write"} onClick=${() => setQuestion(action)}>${action === "retry" ? "Retry failed" : action}</button>`)}
      <a class="button" href=${`/sweeps/${sweep.id}/members.csv`} download>CSV</a> <a class="button" href=${`/ui/jobs?sweep=${sweep.id}`}>Its jobs</a>
      ${sweep.front.length > 1 && html`<a class="button" href=${`/ui/compare?jobs=${sweep.members.filter((/** @type {any} */ one) => sweep.front.includes(one.number) && one.job_id).map((/** @type {any} */ one) => one.job_id).join(",")}`}>Compare the front</a>`}</p>
    ${report && html`<p class="notice bad" role="alert">${report}</p>`}
    <p class="notice">${best(sweep)}</p>
    <${Scatter} points=${points} x=${x} y=${y} log=${y === "kl"} xText=${x.includes("bytes") && x !== "bytes_ratio" ? words.bytes : words.number} label=${`${y} against ${x}; the table has every figure`} />
    <${Members} sweep=${sweep} />
    <details><summary>Document</summary><pre>${JSON.stringify(sweep.sweep, null, 1)}</pre></details>
    <${Question} open=${question !== ""} title=${`${question} this sweep?`} action=${question || "do it"} onDone=${act} onClose=${() => setQuestion("")} />`;
}

/** @param {any} one */
const called = (one) => [one.fields.recipe, ...Object.entries(one.fields).filter(([name]) => name !== "recipe").map(([name, value]) => `${name.split(".").pop()} ${value}`)].join(", ");

/** @param {any} sweep */
function best(sweep) {
  const one = sweep.members.find((/** @type {any} */ member) => member.number === sweep.best);
  if (!one) return ENDED.includes(sweep.status) ? `No member has what is looked for: ${objective(sweep)}.` : `Looked for: ${objective(sweep)}. No member has its figures yet.`;
  const tied = sweep.tied.length ? ` So much text does not tell it from ${sweep.tied.join(", ")}.` : "";
  return `The ${objective(sweep)}: member ${one.number} (${called(one)}).${tied} It is the best on the text that chose it; on another it may be less so.`;
}

/** @param {{sweep: any}} props */
function Members({ sweep }) {
  const varied = [...new Set(sweep.members.flatMap((/** @type {any} */ one) => Object.keys(one.fields)))];
  const finals = sweep.members.some((/** @type {any} */ one) => one.final);
  const rows = [...Object.entries(sweep.beside).map(([name, row]) => ({ name, row })), ...sweep.members];
  return html`<${Wide} label="Members"><table><caption class="unseen">Members</caption><thead><tr><th scope="col">Number</th>${varied.map((name) => html`<th scope="col">${name}</th>`)}<th scope="col">Status</th><th scope="col" class="figure">Bytes</th><th scope="col" class="figure">of source</th><th scope="col" class="figure">Perplexity</th><th scope="col" class="figure">KL</th><th scope="col" class="figure">Top-1</th>${finals && html`<th scope="col">Once more</th>`}</tr></thead>
    <tbody>${rows.map((one) => html`<tr key=${one.number || one.name}>
      <th scope="row">${one.number ? (one.job_id ? html`<a href=${`/ui/jobs/${one.job_id}`}>${one.number}</a>` : one.number) : one.name}</th>${varied.map((name) => html`<td>${one.fields ? String(one.fields[name] ?? "–") : ""}</td>`)}
      <td>${one.status && html`<${Status} status=${one.status} /> <span class="small">${why(sweep, one)}</span>`}</td>
      <td class="figure">${words.bytes(one.row?.bytes_on_disk)}</td><td class="figure">${words.share(one.row?.bytes_ratio)}</td><td class="figure">${words.withError(one.row?.perplexity, one.row?.perplexity_se, 4)}</td><td class="figure">${words.withError(one.row?.kl, one.row?.kl_se)}</td><td class="figure">${words.share(one.row?.top1)}</td>
      ${finals && html`<td>${one.final && html`<a href=${`/ui/jobs/${one.final.job_id}`}>${one.final.published ? `published as ${one.final.published.repo_id}` : one.final.status}</a>`}</td>`}</tr>`)}</tbody></table><//>`;
}

/** @param {any} sweep @param {any} one */
function why(sweep, one) {
  if (one.error) return one.error.message;
  if (one.stopped) return /** @type {any} */ (STOPPED)[one.stopped];
  const marks = [];
  if (sweep.front.includes(one.number)) marks.push("front");
  if (sweep.best === one.number) marks.push("best");
  if (sweep.tied.includes(one.number)) marks.push("tied with the best");
  return marks.join(", ");
}
