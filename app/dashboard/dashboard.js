"use strict";
// Polls the jobs list with ETags; text is only ever set as text, never as markup.
const POLL_MS = 3000;
const SYMBOLS = { queued: "○", running: "◐", canceling: "◌", succeeded: "●", failed: "✕", canceled: "⊘" };
const form = document.getElementById("key-form");
const state = document.getElementById("state");
const table = document.querySelector("table");
const body = document.querySelector("tbody");
let etag = null;
let timer = null;

function cell(row, text, number) {
  const td = row.insertCell();
  td.textContent = text;
  if (number) td.className = "number";
  return td;
}

function bytes(job) {
  const rows = job.result && job.result.rows;
  if (!rows || !rows.length) return "";
  const mb = (row) => (row.bytes_on_disk / 1e6).toFixed(1);
  return `${mb(rows[0])} → ${mb(rows[rows.length - 1])} MB`;
}

function perplexity(job) {
  const rows = job.result && job.result.rows;
  return rows && rows.length ? `${rows[0].perplexity.toFixed(2)} → ${rows[rows.length - 1].perplexity.toFixed(2)}` : "";
}

function show(jobs) {
  body.replaceChildren();
  for (const job of jobs) {
    const row = body.insertRow();
    cell(row, `${SYMBOLS[job.status]} ${job.status}`);
    cell(row, job.model);
    cell(row, job.recipe.metadata.name);
    const td = cell(row, "");
    if (job.progress && job.status === "running") {
      const bar = document.createElement("progress");
      bar.max = 1;
      bar.value = job.progress.fraction;
      td.append(bar, ` ${job.progress.stage}`);
    } else if (job.error) {
      td.textContent = `${job.error.code}: ${job.error.message}`;
    }
    cell(row, bytes(job), true);
    cell(row, perplexity(job), true);
    cell(row, new Date(job.created_at).toLocaleString());
    cell(row, job.id);
  }
  table.hidden = false;
}

async function poll() {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem("key")}` };
  if (etag) headers["If-None-Match"] = etag;
  try {
    const answer = await fetch("/jobs?limit=50", { headers, cache: "no-store" });
    if (answer.status === 200) {
      etag = answer.headers.get("etag");
      const page = await answer.json();
      show(page.data);
      state.textContent = page.data.length ? `${page.data.length} newest jobs` : "No jobs yet.";
    } else if (answer.status !== 304) {
      const problem = await answer.json();
      state.textContent = problem.detail;
      if (answer.status === 401) return;
    }
  } catch {
    state.textContent = "The service does not answer; the table may be out of date.";
  }
  if (!document.hidden) timer = setTimeout(poll, POLL_MS);
}

function start() {
  clearTimeout(timer);
  etag = null;
  poll();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", document.getElementById("key").value);
  start();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden && sessionStorage.getItem("key")) start(); });
if (sessionStorage.getItem("key")) start();
