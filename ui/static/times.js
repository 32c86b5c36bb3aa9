// Relative times go on by themselves; the text keeps its width (tabular figures, fixed columns), so nothing reflows.
// The server's clock counts: the page says what it was when it was made.

const offset = Date.parse(document.body.dataset.now) - Date.now() || 0;

function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 5) return "now";
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  return s < 172800 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} d`;
}

function clock(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  const two = (n) => String(n).padStart(2, "0");
  const minutes = Math.floor(s / 60) % 60;
  return s >= 3600 ? `${Math.floor(s / 3600)}:${two(minutes)}:${two(s % 60)}` : `${minutes}:${two(s % 60)}`;
}

function words(mode, past, at) {
  if (mode === "clock") return clock(past);
  if (mode === "until") return clock(-past).padStart(5, "0");
  if (mode === "age") return span(past);
  if (mode === "time") return at.toLocaleTimeString("en-GB");
  const short = span(past);
  return short === "now" ? "just now" : `${short} ago`;
}

function tick(selector) {
  const now = Date.now() + offset;
  for (const time of document.querySelectorAll(selector)) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    const text = words(time.dataset.rel, (now - at.getTime()) / 1000, at);
    if (time.textContent !== text) time.textContent = text;
    if (!time.dataset.local) {
      time.dataset.local = "1";
      time.title = `${at.toLocaleString("en-GB")} (${time.title})`;
    }
  }
}

export function startTimes() {
  const running = 'time[data-rel="clock"], time[data-rel="until"]';
  tick("time[data-rel]");
  setInterval(tick, 1000, running);
  setInterval(tick, 10000, "time[data-rel]");
  document.addEventListener("hive:changed", () => tick("time[data-rel]:not([data-local])"));
}
