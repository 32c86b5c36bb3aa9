// Lists that grow at their end (transcript, build log): lines after the cursor are fetched and joined by id. The view
// sticks to the bottom until the reader scrolls up; then a button counts what is new.

import { concerns } from "./live.js";
import { insert, morph } from "./morph.js";

const WAIT_MS = 60;
const ROWS_MAX = 3000;
const NEAR_PX = 40;
const jobs = new WeakMap();

export function startFollowing() {
  const lists = () => document.querySelectorAll("[data-follow]");
  document.querySelectorAll("[data-scroll]").forEach((list) => stick(document.querySelector(list.dataset.scroll)));
  startOlder();
  document.addEventListener("visibilitychange", () => !document.hidden && lists().forEach(schedule));
  return (event) => lists().forEach((list) => concerns(list, event) && schedule(list));
}

function schedule(list) {
  const job = jobs.get(list) || { timer: 0, busy: false, again: false };
  jobs.set(list, job);
  if (document.hidden) return;
  if (job.busy) job.again = true;
  else if (!job.timer) job.timer = setTimeout(fetchMore, WAIT_MS, list, job);
}

async function fetchMore(list, job) {
  Object.assign(job, { timer: 0, busy: true, again: false });
  try {
    const answer = await fetch(`${list.dataset.follow}?after=${list.dataset.cursor}`, { signal: AbortSignal.timeout(15000) });
    if (answer.ok) {
      const cursor = answer.headers.get("X-Cursor");
      const moved = cursor && cursor !== list.dataset.cursor;
      if (moved) list.dataset.cursor = cursor;
      join(list, rowsOf(await answer.text()));
      job.again ||= moved; // there may be more: answers are pages
    }
  } catch {
    // the stream tells when the server is back
  }
  job.busy = false;
  if (job.again) schedule(list);
}

const rowsOf = (text) => [...new DOMParser().parseFromString(`<ol>${text}</ol>`, "text/html").querySelectorAll("ol > li")];

function join(list, rows) {
  const box = boxOf(list);
  const stuck = atEnd(box);
  let added = 0;
  for (const row of rows) {
    const known = document.getElementById(row.id);
    if (known) {
      morph(known, row);
    } else {
      insert(list, row, null);
      added += 1;
    }
  }
  if (added) document.getElementById("no-turn")?.remove();
  if (stuck) {
    while (list.childElementCount > ROWS_MAX) list.firstElementChild.remove();
    toEnd(box);
  } else if (added) {
    countNew(box, added);
  }
}

const boxOf = (list) => (list.dataset.scroll ? document.querySelector(list.dataset.scroll) : document.documentElement);
const atEnd = (box) => box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_PX;
const toEnd = (box) => {
  box.scrollTop = box.scrollHeight;
};

function stick(box) {
  const button = document.getElementById("newer");
  toEnd(box);
  box.addEventListener("scroll", () => button && atEnd(box) && countNew(box, -Infinity), { passive: true });
  button?.addEventListener("click", () => toEnd(box));
  // Fonts and folds change heights after the first layout.
  new ResizeObserver(() => button?.hidden !== false && box.dataset.left !== "1" && toEnd(box)).observe(box);
  box.addEventListener("wheel", (event) => (box.dataset.left = event.deltaY < 0 && !atEnd(box) ? "1" : ""), { passive: true });
}

function countNew(box, added) {
  const button = document.getElementById("newer");
  if (!button) return;
  const count = Math.max(0, Number(button.dataset.count || 0) + added);
  button.dataset.count = String(count);
  button.textContent = `${count} new ↓`;
  button.hidden = count === 0;
}

// Scrolling to the top fetches older lines and keeps the place.
function startOlder() {
  const link = document.getElementById("older");
  const list = document.getElementById("transcript");
  if (!link || !list || !("IntersectionObserver" in window)) return;
  let busy = false;
  const observer = new IntersectionObserver(async ([entry]) => {
    const before = new URL(link.href).searchParams.get("before");
    if (!entry.isIntersecting || busy || !before) return;
    busy = true;
    const box = boxOf(list);
    const answer = await fetch(link.dataset.older + before).catch(() => null);
    if (answer?.ok) {
      const height = box.scrollHeight;
      rowsOf(await answer.text()).reverse().forEach((row) => document.getElementById(row.id) || insert(list, row, list.firstChild));
      box.scrollTop += box.scrollHeight - height;
      const next = answer.headers.get("X-Older");
      if (next) link.href = link.href.replace(/before=\d+/, `before=${next}`);
      else link.parentElement.remove();
    }
    busy = false;
    observer.unobserve(link);
    if (link.isConnected) observer.observe(link);
  }, { root: boxOf(list), rootMargin: "200px 0px 0px" });
  setTimeout(() => observer.observe(link), 300); // after the first scroll to the end
}
