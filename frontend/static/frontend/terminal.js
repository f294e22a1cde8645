// A terminal in a sandbox: xterm.js over one websocket. Binary frames are bytes, text frames JSON.
import { FitAddon } from "./vendor/xterm-fit.js";
import { SearchAddon } from "./vendor/xterm-search.js";
import { WebLinksAddon } from "./vendor/xterm-web-links.js";
import { Terminal } from "./vendor/xterm.js";
import { toast } from "./ui.js";

const card = document.querySelector("[data-terminal]");
const screen = document.getElementById("terminal");
const status = card.querySelector("[data-status]");
const viewers = card.querySelector("[data-viewers]");
const restart = card.querySelector("[data-terminal-restart]");
const RETRY_MS = [300, 1000, 2000, 4000, 8000];
const ENDED = 4410;

// xterm.js writes its colours into <style> elements; the page's policy wants a nonce on each.
const createElement = document.createElement.bind(document);
document.createElement = (name, options) => {
  const node = createElement(name, options);
  if (String(name).toLowerCase() === "style") node.nonce = card.dataset.nonce;
  return node;
};

await Promise.all(["400", "600"].map((weight) => document.fonts.load(`${weight} 13px "Geist Mono"`)));

const terminal = new Terminal({
  fontFamily: '"Geist Mono", ui-monospace, Menlo, monospace',
  fontSize: 13,
  lineHeight: 1.2,
  cursorBlink: !matchMedia("(prefers-reduced-motion: reduce)").matches,
  scrollback: 10_000,
  allowProposedApi: true,
  theme: {
    background: "#161412",
    foreground: "#e9e5de",
    cursor: "#e3a23a",
    cursorAccent: "#161412",
    selectionBackground: "#e3a23a55",
    black: "#2a2723", red: "#f58b80", green: "#5fca92", yellow: "#e8b556",
    blue: "#7fb2f7", magenta: "#c4a5f6", cyan: "#6fd0d0", white: "#d9d4cb",
    brightBlack: "#8a8378", brightRed: "#ffa79d", brightGreen: "#82e0ae", brightYellow: "#f6cd7d",
    brightBlue: "#a3c9ff", brightMagenta: "#d9c2ff", brightCyan: "#95e6e6", brightWhite: "#ffffff",
  },
});
const fit = new FitAddon();
const search = new SearchAddon();
terminal.loadAddon(fit);
terminal.loadAddon(search);
terminal.loadAddon(new WebLinksAddon((event, address) => {
  // Text of a sandbox may name any scheme; only web addresses open, and without our window.
  if (/^https?:\/\//.test(address)) window.open(address, "_blank", "noopener,noreferrer");
}));
terminal.open(screen);
fit.fit();

let socket;
let attempt = 0;
let timer;

function show(state, words) {
  status.dataset.state = state;
  status.textContent = words;
}

function control(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function connect() {
  clearTimeout(timer);
  restart.hidden = true;
  const url = new URL(card.dataset.terminal, location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  url.searchParams.set("cols", terminal.cols);
  url.searchParams.set("rows", terminal.rows);
  const opened = new WebSocket(url);
  opened.binaryType = "arraybuffer";
  socket = opened;
  let reason = "";
  opened.addEventListener("message", (event) => {
    if (typeof event.data !== "string") {
      const bytes = new Uint8Array(event.data);
      // Told only once drawn: the server sends no more than the page can show.
      terminal.write(bytes, () => control({ type: "ack", bytes: bytes.length }));
      return;
    }
    const message = JSON.parse(event.data);
    if (message.type === "ready") {
      terminal.reset(); // the replay that follows holds what was there
      attempt = 0;
      show("live", "Connected");
    } else if (message.type === "viewers") {
      viewers.textContent = message.count > 1 ? `${message.count} viewers` : "";
    } else if (message.type === "ended") {
      reason = message.reason;
    }
  });
  opened.addEventListener("close", (event) => {
    if (socket !== opened) return;
    viewers.textContent = "";
    if (event.code >= 4400 && event.code < 4500) {
      show("ended", reason || "Ended");
      restart.hidden = false;
      if (event.code === ENDED) restart.lastChild.textContent = " New shell";
      return;
    }
    show("stale", reason || "Reconnecting…");
    if (attempt >= 8) {
      restart.hidden = false;
      return;
    }
    timer = setTimeout(connect, RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)]);
    attempt += 1;
  });
}

const encoder = new TextEncoder();
const PIECE = 32 * 1024;

function send(bytes) {
  if (socket?.readyState !== WebSocket.OPEN) return;
  for (let at = 0; at < bytes.length; at += PIECE) socket.send(bytes.slice(at, at + PIECE));
}

terminal.onData((text) => send(encoder.encode(text)));
terminal.onBinary((text) => send(Uint8Array.from(text, (letter) => letter.charCodeAt(0))));
terminal.onResize(({ cols, rows }) => control({ type: "resize", cols, rows }));

let resizing;
new ResizeObserver(() => {
  clearTimeout(resizing);
  resizing = setTimeout(() => fit.fit(), 60);
}).observe(screen);

terminal.attachCustomKeyEventHandler((event) => {
  // Tab belongs to the shell, so there must be another way out.
  if (event.type === "keydown" && event.key === "Escape" && event.ctrlKey && event.shiftKey) {
    terminal.blur();
    card.querySelector("[data-terminal-search]").focus();
    return false;
  }
  if (event.type === "keydown" && event.ctrlKey && event.shiftKey && event.code === "KeyC") {
    event.preventDefault();
    navigator.clipboard?.writeText(terminal.getSelection());
    return false;
  }
  return true;
});

restart.addEventListener("click", () => {
  attempt = 0;
  show("stale", "Connecting…");
  connect();
  terminal.focus();
});

const searchForm = card.querySelector(".terminal-search");
card.querySelector("[data-terminal-search]").addEventListener("click", (event) => {
  searchForm.hidden = !searchForm.hidden;
  event.currentTarget.setAttribute("aria-pressed", String(!searchForm.hidden));
  if (!searchForm.hidden) searchForm.querySelector("input").focus();
  else terminal.focus();
});
searchForm.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!search.findNext(searchForm.querySelector("input").value)) toast("Not found on this screen.");
});
searchForm.addEventListener("keydown", (event) => {
  if (event.key === "Escape") card.querySelector("[data-terminal-search]").click();
});

card.querySelector("[data-terminal-reader]").addEventListener("click", (event) => {
  terminal.options.screenReaderMode = !terminal.options.screenReaderMode;
  event.currentTarget.setAttribute("aria-pressed", String(terminal.options.screenReaderMode));
});

card.querySelector("[data-terminal-full]").addEventListener("click", (event) => {
  const full = card.classList.toggle("is-full");
  event.currentTarget.setAttribute("aria-pressed", String(full));
  terminal.focus();
});

connect();
terminal.focus();
