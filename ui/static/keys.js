// The keyboard: single letters, never while typing. Deciding takes two keys, so that a slip decides nothing: `a` and `d`
// only bring the focus to the button or the note.

const PLACES = { h: "/", a: "/approvals", q: "/questions", m: "/messages", e: "/events", s: "/stats", u: "/audit" };
let going = 0;

export function startKeys() {
  document.addEventListener("keydown", onKey);
  document.querySelectorAll("[data-keys]").forEach((link) =>
    link.addEventListener("click", (event) => {
      event.preventDefault();
      document.getElementById("keys").togglePopover();
    }),
  );
}

const typing = (element) => element.matches?.("input, textarea, select, [contenteditable]");
const focus = (id) => {
  const element = document.getElementById(id);
  element?.focus();
  element?.scrollIntoView({ block: "center" });
  return Boolean(element);
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (typing(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (act(event.key)) event.preventDefault();
}

function act(key) {
  if (going && Date.now() - going < 1500) {
    going = 0;
    if (PLACES[key]) location.assign(PLACES[key]);
    return Boolean(PLACES[key]);
  }
  switch (key) {
    case "g":
      going = Date.now();
      return true;
    case "?":
      document.getElementById("keys").togglePopover();
      return true;
    case "/":
      return focus("filter") || focus("prompt-body") || focus("compose-body");
    case "a":
      return focus("approve");
    case "d":
      return focus("note");
    case "j":
      return step(1);
    case "k":
      return step(-1);
    case "[":
      return base(-1);
    case "]":
      return base(1);
    default:
      return false;
  }
}

function step(by) {
  const files = document.querySelectorAll("[data-file]");
  const rows = [...(files.length ? files : document.querySelectorAll("main [data-row]"))].filter((row) => row.offsetParent);
  if (rows.length === 0) return false;
  const now = rows.findIndex((row) => row.classList.contains("here"));
  const next = rows[Math.min(rows.length - 1, Math.max(0, now < 0 ? (by > 0 ? 0 : rows.length - 1) : now + by))];
  rows[now]?.classList.remove("here");
  next.classList.add("here");
  next.querySelector("[data-open], summary")?.focus({ preventScroll: true });
  next.scrollIntoView({ block: files.length ? "start" : "nearest" });
  return true;
}

function base(by) {
  const links = [...document.querySelectorAll("a[data-base]")];
  const now = links.findIndex((link) => link.hasAttribute("aria-current"));
  const next = links[(now + by + links.length) % links.length];
  if (next) location.assign(next.href);
  return links.length > 0;
}
