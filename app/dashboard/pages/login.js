// @ts-check
import { html, useRef, useState } from "../vendor/preact-htm.js";
import { post } from "../lib/api.js";

/** @param {{problem: string, onDone: () => Promise<void>}} props */
export function Login({ problem, onDone }) {
  const [refused, setRefused] = useState("");
  const error = refused || problem;
  const [busy, setBusy] = useState(false);
  const field = useRef(/** @type {any} */ (null));
  const send = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    setRefused("");
    try {
      await post("/session", { key: field.current.value.trim() });
      await onDone();
    } catch (why) {
      setRefused(/** @type {any} */ (why).message);
    }
    setBusy(false);
    if (field.current) field.current.focus();
  };
  return html`<main class="narrow">
    <p class="brand">spq</p><h1>Sign in</h1>
    <form onSubmit=${send}>
      <label for="key">API key</label>
      <input id="key" ref=${field} type="password" autocomplete="off" placeholder="spq_…" required aria-describedby="where" aria-invalid=${error ? "true" : undefined} />
      <button disabled=${busy}>Sign in</button>
      ${error && html`<p class="notice bad" role="alert">${error}</p>`}
    </form>
    <details id="where"><summary>Where is it?</summary>
      <p>On the machine that runs <code>spq serve</code>, in <code>~/.spq/api-key</code>, or in <code>api-key</code> of its <code>--home</code>. There, <code>spq open</code> makes a link that signs in without it.</p>
      <p>In a deployment, whoever runs it makes one: <code>spq keys create --tenant NAME</code>.</p>
    </details>
  </main>`;
}
