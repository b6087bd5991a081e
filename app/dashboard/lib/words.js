// @ts-check
// Every sentence and every number that people read.

const language = navigator.language;
const plain = new Intl.NumberFormat(language);
const percent = new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 1 });
const moment = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" });
const ago = new Intl.RelativeTimeFormat(language, { numeric: "auto", style: "short" });
const NONE = "–";

/** @param {number | null | undefined} value */
export function bytes(value) {
  if (value == null) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  let size = value;
  while (size >= 1000 && at < units.length - 1) {
    size /= 1000;
    at += 1;
  }
  return `${new Intl.NumberFormat(language, { maximumSignificantDigits: 3 }).format(size)} ${units[at]}`;
}

/** @param {number | null | undefined} value */
export const share = (value) => (value == null ? NONE : percent.format(value));
/** @param {number | null | undefined} value @param {number} [digits] */
export const number = (value, digits = 3) =>
  value == null ? NONE : new Intl.NumberFormat(language, { maximumSignificantDigits: digits }).format(value);
/** @param {number | null | undefined} value */
export const count = (value) => (value == null ? NONE : plain.format(value));

/** @param {number | null | undefined} value @param {number | null | undefined} error @param {number} [digits] */
export function withError(value, error, digits = 3) {
  if (value == null) return NONE;
  if (!error) return number(value, digits);
  const places = Math.min(12, Math.max(0, 1 - Math.floor(Math.log10(error)))); // two digits of the error say how many the value has
  const rounded = new Intl.NumberFormat(language, { minimumFractionDigits: places, maximumFractionDigits: places });
  return `${rounded.format(value)} ± ${rounded.format(error)}`;
}

/** A ratio to the source, as what it changes. @param {number | null | undefined} ratio @param {number | null | undefined} error */
export function change(ratio, error) {
  if (ratio == null) return NONE;
  const told = new Intl.NumberFormat(language, { style: "percent", signDisplay: "exceptZero", minimumFractionDigits: 2, maximumFractionDigits: 2 });
  const span = new Intl.NumberFormat(language, { style: "percent", minimumFractionDigits: 2, maximumFractionDigits: 2 });
  return error == null ? told.format(ratio - 1) : `${told.format(ratio - 1)} ± ${span.format(error)}`;
}

/** A figure of a matrix: whole numbers whole. @param {number | null | undefined} value */
export const exact = (value) => (Number.isInteger(value) ? count(value) : number(value));

/** @param {number | null | undefined} value */
export const times = (value) => (value == null ? NONE : `${number(value, 3)}×`);

/** @param {number} seconds */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return NONE;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** @param {string | null | undefined} iso */
export const instant = (iso) => (iso ? moment.format(new Date(iso)) : NONE);

/** @param {string | null | undefined} iso */
export function age(iso) {
  if (!iso) return NONE;
  const seconds = (new Date(iso).getTime() - Date.now()) / 1000;
  const size = Math.abs(seconds);
  if (size < 60) return ago.format(Math.round(seconds), "second");
  if (size < 3600) return ago.format(Math.round(seconds / 60), "minute");
  if (size < 86400) return ago.format(Math.round(seconds / 3600), "hour");
  return ago.format(Math.round(seconds / 86400), "day");
}

/** @param {string | null | undefined} from @param {string | null | undefined} to */
export const between = (from, to) =>
  from ? duration(((to ? new Date(to).getTime() : Date.now()) - new Date(from).getTime()) / 1000) : NONE;

/** @param {string} iso */
export const left = (iso) => `about ${duration((new Date(iso).getTime() - Date.now()) / 1000)} left`;

export const SYMBOLS = {
  queued: "○", running: "◐", canceling: "◌", succeeded: "●", failed: "✕", canceled: "⊘", waiting: "○", skipped: "–",
  paused: "⏸", finished: "●", idle: "○", busy: "◐",
};

/** @param {string} status */
export const symbol = (status) => /** @type {Record<string, string>} */ (SYMBOLS)[status] || "·";

/** What happens with a job, in a line. @param {any} job a row */
export function happening(job) {
  if (job.status === "queued") {
    if (job.last_attempt) {
      return `attempt ${job.last_attempt.number} of ${job.max_attempts} ended: ${job.last_attempt.reason}; it is tried again`;
    }
    return job.queue ? place(job.queue) : "waits for a worker";
  }
  if (job.status === "running" || job.status === "canceling") {
    const stage = job.stage_number ? `stage ${job.stage_number} of ${job.stage_count}: ${job.stage}` : job.stage || "starting";
    return job.estimated_finish_at ? `${stage}; ${left(job.estimated_finish_at)}` : stage;
  }
  if (job.error) return `${job.error.code}: ${job.error.message}`;
  if (job.missing) return `no figures: ${job.missing}`;
  return job.verdict ? verdict(job.verdict.word) : "";
}

/** @param {any} queue */
export function place(queue) {
  if (!queue.workers) return "waits: no worker is there";
  const ahead = queue.position - 1;
  const before = ahead ? `${count(ahead)} ahead` : "next";
  const busy = `${count(queue.running)} running on ${count(queue.workers)} workers`;
  const start = queue.estimated_start_at ? `; begins ${age(queue.estimated_start_at)}` : "";
  return `waits: ${before}, ${busy}${start}`;
}

/** @param {string} word */
export function verdict(word) {
  const words = {
    better: "better than plain INT8", worse: "plain INT8 is better", mixed: "not both smaller and nearer than plain INT8", unclear: "too little text to tell it from plain INT8",
    same: "no better than plain INT8",
  };
  return /** @type {Record<string, string>} */ (words)[word] || word;
}

/** What to do after an error. @param {string} code */
export function remedy(code) {
  const words = {
    quality_gate_failed: "Its figures are below. Choose a gentler recipe, or other gates.",
    load_gate_failed: "The artifact would not have computed what it should. This is a fault of the recipe on this model.",
    hub_unavailable: "The Hub did not answer. Try it again.",
    gated_model: "Accept the model's conditions on the Hub, and give a token that may read it.",
    model_not_found: "Look at the model's name and revision; private models need a token.",
    out_of_host_memory: "Take a worker with more memory; the estimate says how much.",
    out_of_disk: "Make room on the worker, or take a larger one.",
    deadline_exceeded: "Give it more time (limits.max_runtime_seconds).",
    deadline_exceeded_before_start: "No worker was free in time; see Workers.",
    worker_lost: "Its workers vanished. Look at their logs, and try it again.",
    evaluation_failed: "The artifact is finished and kept. Measure it again.",
  };
  return /** @type {Record<string, string>} */ (words)[code] || "";
}
