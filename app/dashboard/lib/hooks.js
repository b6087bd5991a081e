// @ts-check
// What pages have in common: their address, and documents of the service that stay fresh.
import { useEffect, useRef, useState } from "../vendor/preact-htm.js";
import { ApiError, request } from "./api.js";
import { isLive, listen } from "./live.js";

/** @param {string} url */
export function navigate(url, replace = false) {
  history[replace ? "replaceState" : "pushState"](null, "", url);
  dispatchEvent(new Event("navigated"));
}

/** The address, and the page again when it changes. */
export function useAddress() {
  const [address, set] = useState(() => location.pathname + location.search);
  useEffect(() => {
    const look = () => set(location.pathname + location.search);
    addEventListener("navigated", look);
    addEventListener("popstate", look);
    return () => {
      removeEventListener("navigated", look);
      removeEventListener("popstate", look);
    };
  }, []);
  const url = new URL(address, location.origin);
  return { path: url.pathname, query: url.searchParams };
}

/** The present address with other parameters; empty ones are left out. @param {Record<string, string | null>} changes */
export function withQuery(changes) {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(changes)) {
    if (value) url.searchParams.set(name, value);
    else url.searchParams.delete(name);
  }
  return url.pathname + url.search;
}

/** The id that a part of it means. @param {string} part @returns {Promise<string>} */
export async function whole(part) {
  if (/^job_[0-9a-f]{32}$/.test(part)) return part;
  const found = (await request("GET", `/jobs?view=row&limit=2&id_part=${encodeURIComponent(part)}`)).data.data;
  if (found.length === 1) return found[0].id;
  throw new ApiError(404, "job_not_found", found.length ? `Several jobs have ${part} in their id.` : `No job has ${part} in its id.`);
}

/** Statuses of jobs that have not ended. */
export const ACTIVE = ["queued", "running", "canceling"];
const SOONEST_MS = 2000;
const LATEST_MS = 15000;

/**
 * A document of the service. One request at a time; a change that a stream tells of, or time where there is none, makes it
 * look again, and an unchanged document costs no body.
 * @param {string | null} path
 * @param {(event: {type: string, data: any}) => boolean} concerns  whether an event is about it
 */
export function useDocument(path, concerns = () => false) {
  const [state, set] = useState({ data: /** @type {any} */ (null), error: /** @type {any} */ (null), since: 0, next: 0, path: "" });
  const again = useRef(() => {});
  useEffect(() => {
    if (!path) return undefined;
    let etag = "";
    let pause = SOONEST_MS;
    let busy = false;
    let missed = false;
    let waits = false;
    let timer = 0;
    let asked = 0; // until when the service asked not to be asked
    const control = new AbortController();
    const later = (/** @type {number} */ ms) => {
      clearTimeout(timer);
      timer = setTimeout(look, ms);
    };
    async function look() {
      if (busy) {
        missed = true;
        return;
      }
      busy = true;
      missed = false;
      let wait = isLive() ? (waits ? LATEST_MS : 60000) : pause;
      try {
        const found = await request("GET", path || "", undefined, { etag, signal: control.signal });
        if (found.status === 304) {
          pause = Math.min(LATEST_MS, pause * 1.5);
          set((old) => (old.error ? { ...old, error: null } : old));
        } else {
          etag = found.data.status === "queued" ? "" : found.etag || ""; // a place in the queue changes without a version
          waits = found.data.status === "queued";
          wait = isLive() && waits ? LATEST_MS : wait;
          pause = SOONEST_MS;
          set({ data: found.data, error: null, since: Date.now(), next: 0, path: path || "" });
        }
      } catch (error) {
        if (control.signal.aborted) return;
        const known = error instanceof ApiError ? error : new ApiError(-1, "own_script", String(error));
        pause = Math.min(30000, pause * 2);
        asked = Date.now() + known.retryAfter * 1000;
        missed = false; // whatever happened meanwhile waits as long
        wait = Math.max(known.retryAfter * 1000, pause * (0.8 + 0.4 * Math.random()));
        if (known.status === 404 || known.status === 401 || known.status === 403) wait = 3600000;
        set((old) => ({ ...old, error: known, next: Date.now() + wait }));
      }
      busy = false;
      if (!document.hidden) later(missed ? 0 : wait);
    }
    again.current = look;
    const shown = () => !document.hidden && look();
    document.addEventListener("visibilitychange", shown);
    const unlisten = listen((event) => {
      if (document.hidden || Date.now() < asked) return;
      if (event.type === "state") later(event.data.open ? 60000 : SOONEST_MS);
      else if (event.type === "ready" || concerns(event)) later(50);
    });
    look();
    return () => {
      control.abort();
      clearTimeout(timer);
      unlisten();
      document.removeEventListener("visibilitychange", shown);
    };
  }, [path]);
  const fresh = state.path === path ? state : { ...state, data: null };
  return { data: fresh.data, error: state.error, since: state.since, next: state.next, refresh: () => again.current() };
}
