// Parts of the page marked data-live are fetched anew when an event of one of their data-on kinds (`turn.ended`) or
// families (`turn`) comes: not more often than it takes, and in a hidden tab not before it is looked at (but for the rail, which carries the count in the title).

import { morph } from "./morph.js";

const WAIT_MS = 120;
const SLOW_MS = 1000;
const FETCH_MS = 15000;
const work = new WeakMap();

const parts = () => document.querySelectorAll("[data-live]");
const of = (part) => {
  if (!work.has(part)) work.set(part, { timer: 0, busy: false, again: false, cost: 0, text: "", stale: false });
  return work.get(part);
};

export function concerns(part, event) {
  const kinds = part.dataset.on.split(" ");
  const family = event.kind.split(".")[0];
  if (!["*", event.kind, family].some((kind) => kinds.includes(kind)) && event.kind !== "*") return false;
  if (family === "message") return true; // it has two ends, and the event names one
  return !part.dataset.agent || !event.agent || part.dataset.agent === event.agent;
}

export function startLive() {
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) parts().forEach((part) => of(part).stale && schedule(part));
  });
  document.addEventListener("hive:done", refreshAll);
  return (event) => parts().forEach((part) => concerns(part, event) && schedule(part));
}

export function refreshAll() {
  parts().forEach((part) => schedule(part));
}

function schedule(part) {
  const job = of(part);
  if (document.hidden && !part.hasAttribute("data-always")) {
    job.stale = true;
    return;
  }
  if (job.busy) job.again = true;
  else if (!job.timer) job.timer = setTimeout(refresh, Math.max(waitOf(part), 4 * job.cost), part);
}

const waitOf = (part) => (part.hasAttribute("data-slow") ? SLOW_MS : WAIT_MS);

async function refresh(part) {
  const job = of(part);
  Object.assign(job, { timer: 0, busy: true, again: false, stale: false });
  const begun = performance.now();
  try {
    const answer = await fetch(part.dataset.live, { signal: AbortSignal.timeout(FETCH_MS) });
    if (answer.ok) apply(part, job, await answer.text());
  } catch {
    job.stale = true; // the stream tells when the server is back, and everything is fetched then
  }
  job.cost = performance.now() - begun;
  job.busy = false;
  if (job.again) schedule(part);
}

function apply(part, job, text) {
  if (text === job.text) return;
  job.text = text;
  const made = new DOMParser().parseFromString(text, "text/html").getElementById(part.id);
  if (!made || !part.isConnected) return;
  morph(part, made);
  part.dispatchEvent(new CustomEvent("hive:changed", { bubbles: true }));
}
