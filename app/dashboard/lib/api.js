// @ts-check
// Requests to the service. One way in: every answer is JSON, nothing, or an ApiError.

export class ApiError extends Error {
  /** @param {number} status @param {string} code @param {string} detail @param {any} [problem] @param {Headers} [headers] */
  constructor(status, code, detail, problem, headers) {
    super(detail);
    this.status = status;
    this.code = code;
    this.problem = problem || {};
    /** Seconds that the service asks to wait. */
    this.retryAfter = Number(headers?.get("retry-after")) || 0;
  }
}

const SAFE = new Set(["GET", "HEAD"]);

/**
 * @param {string} method @param {string} path @param {any} [body]
 * @param {{signal?: AbortSignal, etag?: string, headers?: Record<string, string>}} [options]
 * @returns {Promise<{status: number, data: any, etag: string | null, headers: Headers}>}
 */
export async function request(method, path, body, options = {}) {
  /** @type {Record<string, string>} */
  const headers = { Accept: "application/json", ...options.headers };
  if (!SAFE.has(method)) {
    headers["X-Spq-Csrf"] = "1";
    headers["Content-Type"] = "application/json";
  }
  if (options.etag) headers["If-None-Match"] = options.etag;
  let answer;
  try {
    const sent = SAFE.has(method) ? undefined : JSON.stringify(body === undefined ? {} : body);
    answer = await fetch(path, { method, headers, body: sent, signal: options.signal, cache: "no-store" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "offline", "The service does not answer.");
  }
  if (answer.status === 304 || answer.status === 204) {
    return { status: answer.status, data: null, etag: answer.headers.get("etag"), headers: answer.headers };
  }
  const type = answer.headers.get("content-type") || "";
  if (!type.includes("json")) {
    if (answer.ok && type.startsWith("text/")) {
      return { status: answer.status, data: await answer.text(), etag: null, headers: answer.headers };
    }
    throw new ApiError(answer.status, "no_json", `Something between here and the service answered (${answer.status}).`, {}, answer.headers);
  }
  const data = await answer.json();
  if (answer.ok) return { status: answer.status, data, etag: answer.headers.get("etag"), headers: answer.headers };
  if (answer.status === 401 && path !== "/session") dispatchEvent(new CustomEvent("signed-out"));
  throw new ApiError(answer.status, data.code || "error", data.detail || "The request was refused.", data, answer.headers);
}

/** @param {string} path @param {{signal?: AbortSignal, headers?: Record<string, string>}} [options] */
export const get = async (path, options) => (await request("GET", path, undefined, options)).data;
/** @param {string} path @param {any} [body] @param {{headers?: Record<string, string>}} [options] */
export const post = async (path, body, options) => (await request("POST", path, body, options)).data;
