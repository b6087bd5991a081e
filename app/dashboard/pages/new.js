// @ts-check
import { html, useEffect, useMemo, useRef, useState } from "../vendor/preact-htm.js";
import { get, post } from "../lib/api.js";
import { navigate } from "../lib/hooks.js";
import { Copy } from "../lib/parts.js";
import * as words from "../lib/words.js";

const WAIT_MS = 300;
const AGAIN_MS = 5000;

/** An Idempotency-Key: two presses of the button make one job. */
function token() {
  const random = new Uint8Array(16);
  crypto.getRandomValues(random);
  return [...random].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const EMPTY = { kind: "hub", model: "", revision: "main", subfolder: "", file: "", requantize: false, recipe: "balanced", changes: "", perplexity: "wikitext2", limit: "32", throughput: true, output: "", isPrivate: true, labels: "", minutes: "" };

/** What of a repository or folder is the model, where that is not all of it. @param {any} form @returns {any} */
function inside(form) {
  return {
    ...(form.subfolder.trim() ? { subfolder: form.subfolder.trim() } : {}),
    ...(form.file.trim() ? { file: form.file.trim() } : {}),
    ...(form.requantize ? { allow_requantize: true } : {}),
  };
}

/** @param {any} form @returns {any} */
function body(form) {
  const earlier = form.earlier || {};
  const changes = form.changes.trim() ? JSON.parse(form.changes) : null;
  /** @type {any} */
  const made = {
    model: { ...(form.kind === "local" ? { path: form.model } : { repo_id: form.model.trim(), revision: form.revision.trim() || "main" }), ...inside(form) },
    recipe: changes ? { ...(form.recipe ? { extends: form.recipe } : {}), ...changes } : form.recipe,
    evaluation: { ...earlier.evaluation, limit: null, perplexity: form.perplexity.split(",").map((/** @type {string} */ one) => one.trim()).filter(Boolean), throughput: form.throughput, ...(form.limit ? { limit: Number(form.limit) } : {}) },
    labels: form.labels === form.earlierLabels ? earlier.labels : Object.fromEntries(form.labels.split(",").map((/** @type {string} */ one) => one.trim()).filter(Boolean).map((/** @type {string} */ one) => [one.split("=")[0], one.split("=").slice(1).join("=")])),
  };
  if (form.output) made.output = { repo_id: form.output.trim(), private: form.isPrivate };
  if (earlier.webhook) made.webhook = earlier.webhook;
  made.limits = { ...earlier.limits, max_runtime_seconds: form.minutes ? Math.round(60 * Number(form.minutes)) : null };
  return made;
}

/** A form like an earlier job's. @param {any} job */
function like(job) {
  const request = job.request;
  const labels = Object.entries(job.labels).map(([name, value]) => `${name}=${value}`).join(", ");
  const seconds = request.limits?.max_runtime_seconds;
  return {
    ...EMPTY, earlier: request, earlierLabels: labels, labels, minutes: seconds ? String(Math.ceil(seconds / 60)) : "", kind: request.model.path ? "local" : "hub", model: request.model.path || request.model.repo_id, revision: request.model.revision || "main",
    subfolder: request.model.subfolder || "", file: request.model.file || "", requantize: request.model.allow_requantize || false,
    recipe: typeof request.recipe === "string" ? request.recipe : request.recipe.extends || "",
    changes: typeof request.recipe === "string" ? "" : JSON.stringify({ ...request.recipe, extends: undefined }, null, 1),
    perplexity: request.evaluation.perplexity.join(", "), limit: request.evaluation.limit ? String(request.evaluation.limit) : "", throughput: request.evaluation.throughput,
    output: request.output?.repo_id || "", isPrivate: request.output?.private ?? true,
  };
}

/** @param {{query: URLSearchParams, who: any}} props */
export function NewJob({ query, who }) {
  const [form, setForm] = useState(EMPTY);
  const [recipes, setRecipes] = useState(/** @type {any[]} */ ([]));
  const [models, setModels] = useState(/** @type {any[]} */ ([]));
  const [plan, setPlan] = useState(/** @type {any} */ (null));
  const [problem, setProblem] = useState(/** @type {any} */ (null));
  const [busy, setBusy] = useState(false);
  const [opened, setOpened] = useState(false);
  const [away, setAway] = useState("");
  const key = useRef(token());
  const set = (/** @type {any} */ changes) => {
    key.current = token();
    setForm((old) => ({ ...old, ...changes }));
  };
  useEffect(() => {
    const from = query.get("from");
    if (from) get(`/jobs/${from}`).then((job) => setForm(like(job)), setProblem);
  }, []);
  useEffect(() => {
    let timer = 0;
    const look = () => Promise.all([get("/recipes"), get("/models")]).then(([some, more]) => {
      setRecipes(some.data);
      setModels(more.data);
      setAway("");
    }, (error) => {
      setAway(error.message);
      timer = setTimeout(look, AGAIN_MS);
    });
    look();
    return () => clearTimeout(timer);
  }, []);
  const asked = useMemo(() => {
    try {
      return { body: body(form), error: "" };
    } catch (error) {
      return { body: null, error: `Changes are not JSON: ${/** @type {any} */ (error).message}` };
    }
  }, [form]);
  useEffect(() => {
    setPlan(null);
    if (!asked.body || !form.model.trim()) return undefined;
    const control = new AbortController();
    const timer = setTimeout(() => {
      post("/estimates", { model: asked.body.model, recipe: asked.body.recipe, evaluation: asked.body.evaluation }).then((found) => {
        if (!control.signal.aborted) {
          setPlan(found);
          setProblem(null);
        }
      }, (error) => {
        if (!control.signal.aborted) setProblem(error);
      });
    }, WAIT_MS);
    return () => {
      clearTimeout(timer);
      control.abort();
    };
  }, [JSON.stringify(asked.body)]);
  const send = async (/** @type {any} */ event) => {
    event.preventDefault();
    if (busy || !asked.body) return;
    setBusy(true);
    try {
      const job = await post("/jobs", asked.body, { headers: { "Idempotency-Key": key.current } });
      navigate(`/ui/jobs/${job.id}`);
    } catch (error) {
      setProblem(error);
      const status = /** @type {any} */ (error).status;
      if (status >= 400 && status < 500) key.current = token(); // after a lost answer the same key gets the same job
      setBusy(false);
    }
  };
  const may = who.scopes.includes("jobs:write");
  const errors = problem?.problem?.errors || [];
  const chosen = recipes.find((one) => one.name === form.recipe);
  const curl = asked.body ? `curl -X POST ${location.origin}/jobs -H "Authorization: Bearer $SPQ_API_KEY" -H "Content-Type: application/json" -d '${JSON.stringify(asked.body).replaceAll("'", "'\\''")}'` : "";
  return html`<h1>New job</h1>${away && html`<p class="notice warn" role="status">${away} Recipes and models are not known yet; trying again.</p>`}<form class="new" onSubmit=${send}>
    <fieldset><legend>Model</legend>
      <label><input type="radio" name="kind" checked=${form.kind === "hub"} onChange=${() => set({ kind: "hub", model: "" })} /> from the Hub</label>
      <label><input type="radio" name="kind" checked=${form.kind === "local"} disabled=${models.length === 0} onChange=${() => set({ kind: "local", model: models[0]?.name || "" })} /> a folder of this service ${models.length === 0 && !away ? "(there is none)" : ""}</label>
      ${form.kind === "hub" ? html`<label>Repository <input name="model" required value=${form.model} placeholder="HuggingFaceTB/SmolLM2-135M-Instruct" onInput=${(/** @type {any} */ e) => set({ model: e.target.value })} /></label>
        <label>Revision <input value=${form.revision} onInput=${(/** @type {any} */ e) => set({ revision: e.target.value })} /></label>`
        : html`<label>Folder <select name="model" onChange=${(/** @type {any} */ e) => set({ model: e.target.value })}>${models.map((one) => html`<option value=${one.name} selected=${one.name === form.model}>${one.name} (${one.model_type || "?"}, ${words.bytes(one.bytes)})</option>`)}</select></label>`}
      <details open=${opened || Boolean(form.subfolder || form.file || form.requantize)} onToggle=${(/** @type {any} */ e) => setOpened(e.target.open)}><summary>A part of it, or quantized already</summary>
        <label>Subfolder <input name="subfolder" value=${form.subfolder} placeholder="onnx/plain" onInput=${(/** @type {any} */ e) => set({ subfolder: e.target.value })} /></label>
        <label>GGUF file <input name="file" value=${form.file} placeholder="model.Q8_0.gguf" onInput=${(/** @type {any} */ e) => set({ file: e.target.value })} /></label>
        <label><input type="checkbox" name="requantize" checked=${form.requantize} onChange=${(/** @type {any} */ e) => set({ requantize: e.target.checked })} /> widen weights that are quantized already, and compress those</label>
      </details>
    </fieldset>
    <fieldset><legend>Recipe</legend>
      <label>Recipe <select name="recipe" onChange=${(/** @type {any} */ e) => set({ recipe: e.target.value })}>${!chosen && html`<option value=${form.recipe} selected>${form.recipe || "a document of its own"}</option>`}${recipes.map((one) => html`<option value=${one.name} selected=${one.name === form.recipe}>${one.name}</option>`)}</select></label>
      ${chosen && html`<p class="small">${chosen.description}</p>`}
      <details open=${form.changes !== ""}><summary>Changes</summary><label>JSON laid over the recipe <textarea rows="5" value=${form.changes} placeholder='{"target": {"bytes_ratio": 0.3}, "gates": {"max_kl": 0.05}}' onInput=${(/** @type {any} */ e) => set({ changes: e.target.value })}></textarea></label></details>
    </fieldset>
    <fieldset><legend>Measure</legend>
      <label>Texts <input value=${form.perplexity} onInput=${(/** @type {any} */ e) => set({ perplexity: e.target.value })} /></label>
      <label>Windows <input type="number" min="1" value=${form.limit} placeholder="all" onInput=${(/** @type {any} */ e) => set({ limit: e.target.value })} /></label>
      <label><input type="checkbox" checked=${form.throughput} onChange=${(/** @type {any} */ e) => set({ throughput: e.target.checked })} /> time source, plain INT8 and result</label>
    </fieldset>
    <fieldset><legend>More</legend>
      <label>Publish as <input value=${form.output} placeholder="me/my-model-small (nothing: it stays here)" onInput=${(/** @type {any} */ e) => set({ output: e.target.value })} /></label>
      <label><input type="checkbox" checked=${form.isPrivate} onChange=${(/** @type {any} */ e) => set({ isPrivate: e.target.checked })} /> private</label>
      <label>Labels <input value=${form.labels} placeholder="team=search, run=7" onInput=${(/** @type {any} */ e) => set({ labels: e.target.value })} /></label>
      <label>Minutes at most <input type="number" min="1" value=${form.minutes} placeholder="as long as it takes" onInput=${(/** @type {any} */ e) => set({ minutes: e.target.value })} /></label>
    </fieldset>
    <section aria-live="polite" class="notice"><h2>Estimate</h2><${Plan} plan=${plan} waits=${!problem && Boolean(asked.body && form.model.trim())} named=${Boolean(form.model.trim())} /></section>
    ${(asked.error || problem) && html`<div class="notice bad" role="alert"><p>${asked.error || problem.message}</p>${errors.length > 0 && html`<ul>${errors.map((/** @type {any} */ one) => html`<li><code>${one.pointer || "/"}</code> ${one.detail}</li>`)}</ul>`}</div>`}
    <p class="buttons"><button disabled=${busy || !may || !asked.body} title=${may ? undefined : "this key lacks the scope jobs:write"}>Submit</button> ${curl && html`<${Copy} text=${curl} label="Copy as curl" />`}</p>
  </form>`;
}

/** @param {{plan: any, waits: boolean, named: boolean}} props */
function Plan({ plan, waits, named }) {
  if (!plan) return html`<p>${waits ? "Looking at the model …" : named ? "None for what is asked." : "Name a model to see what it would take."}</p>`;
  const found = plan.estimate || plan;
  const range = (/** @type {any} */ one, /** @type {(value: any) => string} */ text) => (!one ? "–" : one.low === one.high ? text(one.expected) : `${text(one.expected)} (${text(one.low)} to ${text(one.high)})`);
  return html`<dl class="facts"><div><dt>Artifact</dt><dd>${range(found.artifact_bytes, words.bytes)}, ${words.share(found.artifact_bytes.expected / found.source_bytes)} of the source</dd></div>
    <div><dt>Memory</dt><dd>${words.bytes(found.peak_bytes)}</dd></div>
    <div><dt>Time on two cores</dt><dd>${range(found.seconds, words.duration)}</dd></div></dl>`;
}
