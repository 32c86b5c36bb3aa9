// Live updates on top of pages that work without them. Events say what kind of thing happened; parts of the page that
// depend on it are fetched anew and only what differs is touched.

import { startFollowing } from "./follow.js";
import { startForms } from "./forms.js";
import { startKeys } from "./keys.js";
import { refreshAll, startLive } from "./live.js";
import { startStream } from "./stream.js";
import { startTimes } from "./times.js";

const offline = document.getElementById("offline");
const clock = (iso) => new Date(iso).toLocaleTimeString([], { hour12: false });

function show(state, since) {
  const words = {
    up: "",
    away: `hived is away since ${clock(since)} — reconnecting; what you see is from then`,
    down: `no connection since ${clock(since)} — reconnecting; what you see is from then`,
    logout: "Your session has ended. ",
  }[state];
  if (offline.textContent !== words) offline.textContent = words;
  if (state === "logout") {
    const link = document.createElement("a");
    link.href = "/login";
    link.textContent = "Log in again";
    offline.append(link);
  }
  offline.hidden = state === "up";
  document.documentElement.dataset.stream = state;
}

// On a telephone the sections are one line that scrolls.
document.querySelector(".sections [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

startTimes();
const onEvent = [startLive(), startFollowing()];
startForms();
startKeys();
startStream({
  event: (event) => onEvent.forEach((take) => take(event)),
  state: show,
  missed: () => {
    refreshAll();
    onEvent.forEach((take) => take({ kind: "*", agent: null }));
  },
});
