// @ts-check
// What changes, as it changes: one stream for all tabs of a browser where Web Locks are there, else one a tab.

/** @type {Set<(event: {type: string, data: any}) => void>} */
const listeners = new Set();
const TYPES = ["job", "sweep", "workers", "gone", "ready"];
const HIDDEN_MS = 60000;
const channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("spq-live") : null;
/** @type {EventSource | null} */
let source = null;
/** @type {(() => void) | null} */
let release = null;
let wanted = false;
let open = false;
let hiddenTimer = 0;

/** Whether changes come by themselves now; where they do not, pages look again. */
export const isLive = () => open;

/** @param {{type: string, data: any}} event */
function tell(event) {
  if (event.type === "state") open = event.data.open;
  else open = true;
  for (const listener of [...listeners]) listener(event);
}

/** @param {{type: string, data: any}} event */
function share(event) {
  tell(event);
  if (channel) channel.postMessage(event);
}

if (channel) channel.onmessage = (message) => tell(message.data);

function connect() {
  source = new EventSource("/events");
  for (const type of TYPES) {
    source.addEventListener(type, (event) => share({ type, data: JSON.parse(/** @type {MessageEvent} */ (event).data) }));
  }
  source.onerror = () => {
    share({ type: "state", data: { open: false } });
    if (source && source.readyState === EventSource.CLOSED) {
      source = null;
      setTimeout(() => wanted && release && !source && connect(), 15000);
    }
  };
}

function lead() {
  if (release) return;
  const hold = () => new Promise((resolve) => {
    if (!wanted) return resolve(undefined);
    release = () => resolve(undefined);
    connect();
  });
  if (navigator.locks) navigator.locks.request("spq-live", hold);
  else hold();
}

function stop() {
  if (source) source.close();
  source = null;
  if (release) release();
  release = null;
  open = false;
}

/** Begin: once somebody is signed in. */
export function startLive() {
  if (wanted) return;
  wanted = true;
  lead();
}

/** End: nobody is signed in. */
export function stopLive() {
  wanted = false;
  stop();
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(hiddenTimer);
  if (document.hidden) {
    hiddenTimer = setTimeout(stop, HIDDEN_MS);
  } else if (wanted && !release) {
    lead();
    tell({ type: "ready", data: {} });
  }
});

/** @param {(event: {type: string, data: any}) => void} listener @returns {() => void} */
export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}
