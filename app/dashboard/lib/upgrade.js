// @ts-check
// Whether the service is still the one that this page came from.
import { html, useEffect, useState } from "../vendor/preact-htm.js";

const LOOK_MS = 300000;

/** The version of the service; a notice where it is no longer that of the page. */
export function Upgrade() {
  const [first, setFirst] = useState("");
  const [now, setNow] = useState("");
  useEffect(() => {
    const look = async () => {
      const page = document.hidden ? null : await fetch("/ui/", { method: "HEAD" }).catch(() => null);
      const found = (page?.ok && page.headers.get("x-spq-version")) || "";
      if (!found) return;
      setFirst((old) => old || found);
      setNow(found);
    };
    look();
    const timer = setInterval(look, LOOK_MS);
    document.addEventListener("visibilitychange", look);
    return () => {
      clearInterval(timer);
      document.removeEventListener("visibilitychange", look);
    };
  }, []);
  const reload = () => location.reload();
  return html`<span>spq ${now}</span> ${first !== now && html`<span class="notice warn" role="status">This page is of ${first}. <button type="button" onClick=${reload}>Reload</button></span>`}`;
}
