// @ts-check
// Keys for people who read many rows: / to search, j and k to go from row to row, ? for help. A switch turns them off.
import { html, useEffect, useRef, useState } from "../vendor/preact-htm.js";
import { Question } from "./parts.js";

const SWITCH = "spq-keys";
const KEYS = [["/", "go to the search field"], ["j", "next row"], ["k", "row before"], ["?", "this help"]];

/** Whether single keys mean something; a browser that keeps nothing has them on. */
const areOn = () => {
  try {
    return localStorage.getItem(SWITCH) !== "off";
  } catch {
    return true;
  }
};

/** @param {number} step */
function go(step) {
  const rows = [.../** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("tbody th a"))];
  const at = rows.findIndex((one) => one === document.activeElement);
  const next = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + step))];
  if (next) next.focus();
}

/** Listens to the whole page, and shows the help. */
export function Keys() {
  const [help, setHelp] = useState(false);
  const [on, setOn] = useState(areOn());
  const known = useRef(on);
  known.current = on;
  useEffect(() => {
    const pressed = (/** @type {KeyboardEvent} */ event) => {
      const target = /** @type {HTMLElement} */ (event.target);
      if (event.ctrlKey || event.metaKey || event.altKey || target.closest("input, select, textarea, dialog")) return;
      if (event.key === "?") setHelp(true);
      else if (!known.current) return;
      else if (event.key === "/") document.getElementById("search")?.focus();
      else if (event.key === "j" || event.key === "k") go(event.key === "j" ? 1 : -1);
      else return;
      event.preventDefault();
    };
    document.addEventListener("keydown", pressed);
    return () => document.removeEventListener("keydown", pressed);
  }, []);
  const turn = () => {
    setOn(!on);
    try {
      localStorage.setItem(SWITCH, on ? "off" : "on");
    } catch { /* this page alone then */ }
  };
  return html`<${Question} open=${help} title="Keys" action=${on ? "Turn them off" : "Turn them on"} onDone=${turn} onClose=${() => setHelp(false)}>
    <dl class="keys">${KEYS.map(([key, what]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${what}</dd></div>`)}</dl>
    ${!on && html`<p>They are off; only ? is heard.</p>`}
  <//>`;
}
