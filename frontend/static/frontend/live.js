// One websocket a page. The server only hints what changed; the page asks for fresh HTML, one
// request at a time, so a slow browser gets fewer snapshots instead of a growing queue.

const MIN_GAP_MS = 250;
const REST_FACTOR = 3; // a server that takes long is asked less often
const STALE_AFTER_MS = 40_000; // the server beats every 15 s
const RETRY_MS = [500, 1000, 2000, 4000, 8000, 15_000];

const topicsOf = (node) => node.dataset.live.split(" ");

class Live {
  constructor(url) {
    this.url = new URL(url, location.href);
    this.url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    this.attempt = 0;
    this.wanted = new Set();
    this.busy = new Set();
    this.lastAsked = 0;
    this.gap = MIN_GAP_MS;
    this.heard = Date.now();
    this.connect();
    setInterval(() => this.watch(), 5000);
    addEventListener("online", () => this.retryNow());
    addEventListener("offline", () => this.drop()); // the socket would notice a minute later
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.retryNow();
      if (!document.hidden && this.wanted.size) this.flush();
    });
  }

  connect() {
    clearTimeout(this.timer);
    const socket = new WebSocket(this.url);
    this.socket = socket;
    socket.addEventListener("message", (event) => {
      this.heard = Date.now();
      const message = JSON.parse(event.data);
      if (message.type === "joined") {
        this.attempt = 0;
        this.show("live");
        this.want("*"); // what we missed before, or while away
      }
      if (message.type === "changed") for (const topic of message.topics) this.want(topic);
    });
    socket.addEventListener("close", (event) => {
      if (this.socket !== socket) return;
      this.socket = null;
      if (event.code === 4404 || event.code === 4401) {
        this.show("off");
        if (event.code === 4401) location.reload();
        return;
      }
      this.show("stale");
      const wait = RETRY_MS[Math.min(this.attempt, RETRY_MS.length - 1)];
      this.attempt += 1; // until the server says that we joined
      this.timer = setTimeout(() => this.connect(), wait * (0.75 + Math.random() / 2));
    });
  }

  retryNow() {
    if (!this.socket && this.attempt) {
      clearTimeout(this.timer);
      this.connect();
    }
  }

  watch() {
    if (Date.now() - this.heard > STALE_AFTER_MS) this.drop();
  }

  drop() {
    const { socket } = this;
    if (!socket) return;
    socket.close();
    // A close that waits for the other side tells us too late.
    socket.dispatchEvent(new CloseEvent("close", { code: 4000 }));
  }

  want(topic) {
    this.wanted.add(topic);
    this.flush();
  }

  flush() {
    if (document.hidden || this.pending) return;
    const wait = Math.max(0, this.lastAsked + this.gap - Date.now());
    this.pending = setTimeout(() => {
      this.pending = null;
      this.lastAsked = Date.now();
      const topics = this.wanted;
      this.wanted = new Set();
      for (const node of document.querySelectorAll("[data-live]:not([data-live-paused])")) {
        if (!topics.has("*") && !topicsOf(node).some((topic) => topics.has(topic))) continue;
        if (this.busy.has(node.id)) {
          for (const topic of topicsOf(node)) this.wanted.add(topic); // asked again when done
          continue;
        }
        this.busy.add(node.id);
        window.htmx.trigger(node, "live");
      }
    }, wait);
  }

  done(id) {
    this.gap = Math.max(MIN_GAP_MS, REST_FACTOR * (Date.now() - this.lastAsked));
    if (this.busy.delete(id) && this.wanted.size) this.flush();
  }

  show(state) {
    document.documentElement.dataset.liveState = state;
    const words = { live: "Live", stale: "Reconnecting…", off: "Not live" };
    for (const dot of document.querySelectorAll(".live-dot")) {
      dot.dataset.state = state;
      dot.textContent = words[state];
    }
    for (const banner of document.querySelectorAll("[data-stale-banner]")) {
      clearTimeout(this.bannerTimer);
      if (state === "live") banner.hidden = true;
      else this.bannerTimer = setTimeout(() => { banner.hidden = false; }, 2500);
    }
  }
}

let live;

export function startLive() {
  const url = document.body.dataset.liveUrl;
  if (!url || !document.querySelector("[data-live]")) return;
  live = new Live(url);
  // What this page itself just did; the socket may be down.
  document.addEventListener("live-changed", (event) => {
    for (const topic of event.detail.topics) live.want(topic);
  });
  document.addEventListener("htmx:afterRequest", (event) => {
    const holder = event.detail.elt;
    if (holder.dataset?.live) live.done(holder.id);
  });
  document.addEventListener("htmx:afterSettle", () => {
    live.show(document.documentElement.dataset.liveState ?? "stale");
    for (const node of document.querySelectorAll("[data-live]")) node.classList.add("is-live");
  });
  requestAnimationFrame(() => {
    for (const node of document.querySelectorAll("[data-live]")) node.classList.add("is-live");
  });
}
