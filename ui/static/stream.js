// One EventSource per browser: the tab that holds a Web Lock reads the stream and tells the others over a
// BroadcastChannel. Without locks (plain http to another name) each visible tab has its own.

const RETRY_MS = 2000;

export function startStream(on) {
  let last = Number(document.body.dataset.last || 0);
  let state = "opening";
  let since = new Date().toISOString();
  let source = null;
  let leading = false;
  const channel = "BroadcastChannel" in window ? new BroadcastChannel("hive-stream") : null;

  const tell = (message) => leading && channel?.postMessage(message);

  function become(next, at) {
    if (state === "logout" || next === state) return;
    const recovered = next === "up" && state !== "opening";
    state = next;
    since = at || new Date().toISOString();
    on.state(state, since);
    tell({ type: "state", state, since, last });
    if (recovered) on.missed();
  }

  function take(event) {
    if (event.kind === "resync") return on.missed();
    last = Math.max(last, event.id);
    on.event(event);
  }

  function open() {
    if (state === "logout") return;
    source?.close();
    const mine = new EventSource(`/stream?after=${last}`);
    source = mine;
    mine.addEventListener("open", () => become("up"));
    mine.addEventListener("hive", (frame) => {
      const event = { ...JSON.parse(frame.data), id: Number(frame.lastEventId) };
      become("up");
      tell({ type: "event", event });
      take(event);
    });
    mine.addEventListener("away", (frame) => become("away", JSON.parse(frame.data).since));
    mine.addEventListener("back", () => become("up"));
    mine.addEventListener("logout", ended);
    mine.addEventListener("error", () => {
      if (source !== mine) return;
      become("down");
      if (mine.readyState === EventSource.CLOSED) setTimeout(comeBack, RETRY_MS, mine);
    });
  }

  function ended() {
    source?.close();
    source = null;
    become("logout");
  }

  // An EventSource gives up on any answer but 200 and does not say which it was.
  async function comeBack(from) {
    if (source !== from) return;
    const answer = await fetch("/fragments/rail").catch(() => null);
    if (answer?.status === 401) ended();
    else open();
  }

  function lead() {
    leading = true;
    open();
  }

  channel?.addEventListener("message", ({ data }) => {
    if (data.type === "join" && leading) tell({ type: "state", state, since, last });
    if (leading) return;
    if (data.type === "event") take(data.event);
    if (data.type === "state") {
      if (data.last > last) on.missed();
      last = Math.max(last, data.last);
      become(data.state, data.since);
    }
  });

  if (navigator.locks && channel) {
    navigator.locks.request("hive-stream", () => new Promise(lead)).catch(lead);
    channel.postMessage({ type: "join" });
  } else {
    const look = () => {
      if (document.hidden) {
        source?.close();
        source = null;
      } else if (!source) {
        open();
      }
    };
    document.addEventListener("visibilitychange", look);
    look();
  }
  addEventListener("pagehide", () => source?.close());
  addEventListener("pageshow", (event) => event.persisted && location.reload());
}

