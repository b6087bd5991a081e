// @ts-check
// The page around all pages: who is signed in, where one is, which view that is.
import { html, render, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { ApiError, post, request } from "./lib/api.js";
import { navigate, useAddress } from "./lib/hooks.js";
import { Keys } from "./lib/keys.js";
import { startLive, stopLive } from "./lib/live.js";
import { Upgrade } from "./lib/upgrade.js";
import { Login } from "./pages/login.js";
import { Jobs } from "./pages/jobs.js";
import { Job } from "./pages/job.js";
import { Compare } from "./pages/compare.js";
import { NewJob } from "./pages/new.js";
import { Sweeps } from "./pages/sweeps.js";
import { Sweep } from "./pages/sweep.js";
import { Workers } from "./pages/workers.js";

const PAGES = [
  { pattern: /^\/ui\/(?:jobs)?$/, title: "Jobs", view: Jobs },
  { pattern: /^\/ui\/jobs\/(?<id>[^/]+)$/, title: "Job", view: Job },
  { pattern: /^\/ui\/sweeps$/, title: "Sweeps", view: Sweeps },
  { pattern: /^\/ui\/sweeps\/(?<id>[^/]+)$/, title: "Sweep", view: Sweep },
  { pattern: /^\/ui\/compare$/, title: "Compare", view: Compare },
  { pattern: /^\/ui\/new$/, title: "New job", view: NewJob },
  { pattern: /^\/ui\/workers$/, title: "Workers", view: Workers },
];
const LINKS = [["Jobs", "/ui/jobs"], ["Sweeps", "/ui/sweeps"], ["Compare", "/ui/compare"], ["Workers", "/ui/workers"], ["New job", "/ui/new"]];

function App() {
  const { path, query } = useAddress();
  const [who, setWho] = useState(/** @type {any} */ (undefined));
  const [problem, setProblem] = useState("");
  const main = useRef(/** @type {any} */ (null));

  async function look() {
    try {
      const found = await request("GET", "/me");
      setWho(found.data);
      startLive();
    } catch (error) {
      stopLive();
      setWho(null);
      if (error instanceof ApiError && error.status !== 401) setProblem(error.message);
      return;
    }
  }

  useEffect(() => {
    const out = () => {
      stopLive();
      setWho(null);
    };
    addEventListener("signed-out", out);
    const enter = () => {
      const code = new URLSearchParams(location.hash.slice(1)).get("code");
      if (!code) return false;
      history.replaceState(null, "", location.pathname + location.search);
      post("/session", { code }).then(look, (error) => {
        setProblem(error.message);
        look();
      });
      return true;
    };
    if (!enter()) look();
    addEventListener("hashchange", enter);
    return () => {
      removeEventListener("signed-out", out);
      removeEventListener("hashchange", enter);
    };
  }, []);

  useEffect(() => {
    const follow = (/** @type {any} */ event) => {
      const link = event.target.closest && event.target.closest("a[href^='/ui']");
      if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || link.target) return;
      if (link.hash && link.pathname === location.pathname) return;
      event.preventDefault();
      navigate(link.getAttribute("href"));
      scrollTo(0, 0);
      if (main.current) main.current.focus();
    };
    document.addEventListener("click", follow);
    return () => document.removeEventListener("click", follow);
  }, []);

  const page = PAGES.map((one) => ({ ...one, match: one.pattern.exec(path) })).find((one) => one.match);
  useEffect(() => {
    document.title = who === null ? "Sign in · spq" : `${page ? page.title : "Nothing here"} · spq`;
  }, [path, who]);

  if (who === undefined) return html`<main aria-busy="true" class="skeleton"></main>`;
  if (who === null) return html`<${Login} problem=${problem} onDone=${() => { setProblem(""); return look(); }} />`;
  const View = page ? page.view : Nothing;
  const signOut = async () => {
    await request("DELETE", "/session");
    stopLive();
    setWho(null);
  };
  return html`
    <a class="skip" href="#main">Skip to content</a>
    <header><nav aria-label="Pages">
      <a class="brand" href="/ui/jobs">spq</a>
      ${LINKS.map(([name, url]) => html`<a href=${url} aria-current=${path === url || (url === "/ui/jobs" && path === "/ui/") ? "page" : undefined}>${name}</a>`)}
    </nav><div class="who"><span title=${`key ${who.key.name}, ${who.scopes.join(", ")}`}>${who.tenant}</span> <button type="button" class="quiet" onClick=${signOut}>Sign out</button></div></header>
    <main id="main" ref=${main} tabindex="-1"><${View} key=${path} id=${page?.match?.groups?.id} query=${query} who=${who} /></main>
    <footer><${Upgrade} /> <a href="/openapi.json">API document</a> <span class="small">Keys: press ?</span></footer><${Keys} />`;
}

const Nothing = () => html`<h1>Nothing here</h1><p>There is no such page. <a href="/ui/jobs">All jobs</a></p>`;

render(html`<${App} />`, /** @type {any} */ (document.getElementById("app")));
