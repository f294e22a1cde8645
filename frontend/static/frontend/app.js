// Every page: toasts, copy buttons, confirmations, clocks, theme, menus, shortcuts.
import { startLive } from "./live.js";
import { announce, expire, icon, showToasts, toast, toasts } from "./ui.js";

/* Toasts ---------------------------------------------------------------- */

if (toasts.children.length) {
  showToasts();
  for (const item of toasts.children) expire(item);
}

document.addEventListener("toast", (event) => toast(event.detail.message, event.detail.level));

/* Clocks ---------------------------------------------------------------- */

function span(seconds, shown = 2) {
  let rest = Math.max(0, Math.floor(seconds));
  const parts = [];
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    const amount = Math.floor(rest / size);
    rest -= amount * size;
    if (amount || (unit === "s" && !parts.length)) parts.push(`${amount} ${unit}`);
    else if (parts.length) break;
  }
  return parts.slice(0, shown).join(" ");
}

function tick() {
  const now = Date.now();
  for (const node of document.querySelectorAll("time[data-clock]")) {
    const at = Date.parse(node.dateTime);
    const seconds = (node.dataset.clock === "until" ? at - now : now - at) / 1000;
    let words = span(seconds, node.dataset.clock === "ago" ? 1 : 2);
    if (node.dataset.clock === "ago") words = seconds < 5 ? "just now" : `${words} ago`;
    if (node.textContent !== words) node.textContent = words;
  }
}

setInterval(tick, 1000);
document.addEventListener("htmx:afterSwap", tick);

/* Confirmations ---------------------------------------------------------- */

const confirmDialog = document.getElementById("confirm");

function ask({ title, text, action = "Confirm" }) {
  document.getElementById("confirm-title").textContent = title;
  document.getElementById("confirm-text").textContent = text;
  document.getElementById("confirm-ok").textContent = action;
  confirmDialog.returnValue = "";
  confirmDialog.showModal();
  return new Promise((resolve) => {
    confirmDialog.addEventListener(
      "close",
      () => resolve(confirmDialog.returnValue === "ok"),
      { once: true },
    );
  });
}

document.addEventListener("htmx:confirm", async (event) => {
  const submitter = event.detail.triggeringEvent?.submitter;
  const holder = submitter?.dataset.confirmTitle ? submitter : event.detail.elt;
  if (!holder.dataset?.confirmTitle) return;
  event.preventDefault();
  const sure = await ask({
    title: holder.dataset.confirmTitle,
    text: holder.dataset.confirmText ?? "",
    action: holder.dataset.confirmAction,
  });
  if (sure) event.detail.issueRequest(true);
});

// The same for forms that htmx does not send.
document.addEventListener("submit", async (event) => {
  const holder = event.submitter;
  if (!holder?.matches("[data-confirm-submit]") || holder.dataset.sure) return;
  event.preventDefault();
  const { confirmTitle: title, confirmText: text, confirmAction: action } = holder.dataset;
  if (!(await ask({ title, text, action }))) return;
  holder.dataset.sure = "yes";
  holder.form.requestSubmit(holder);
});

// A dialog whose form was accepted has done its work.
document.addEventListener("htmx:afterRequest", (event) => {
  const dialog = event.detail.elt.closest?.("dialog");
  if (dialog && event.detail.xhr?.status === 204) {
    dialog.close();
    event.detail.elt.reset?.();
  }
});

/* Copy, dismiss, dialogs -------------------------------------------------- */

async function copy(button) {
  const source = button.dataset.copy
    ? document.querySelector(button.dataset.copy)
    : button.closest(".code, .secret").querySelector("pre, code");
  const text = (source.value ?? source.textContent).trim();
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Plain http on a name other than localhost has no clipboard API: select, so Ctrl+C works.
    getSelection().selectAllChildren(source);
    toast("Selected. Press Ctrl+C to copy.");
    return;
  }
  const before = [...button.childNodes];
  button.replaceChildren(icon("check"), ...("word" in button.dataset ? [" Copied"] : []));
  announce("Copied");
  setTimeout(() => button.replaceChildren(...before), 1600);
}

document.addEventListener("click", (event) => {
  const target = event.target.closest("button, a, [data-backdrop]");
  if (!target) return;
  if (target.matches("[data-dismiss]")) target.closest(".toast, .banner").remove();
  else if (target.matches(".copy")) copy(target);
  else if (target.matches("[data-open]")) {
    event.preventDefault();
    document.getElementById(target.dataset.open).showModal();
  } else if (target.matches("[data-close]")) target.closest("dialog").close();
  else if (target.matches("[data-open-help]")) {
    document.getElementById("user-menu")?.hidePopover();
    document.getElementById("shortcuts").showModal();
  } else if (target.matches("[data-open-palette]")) openPalette();
});

document.addEventListener("click", (event) => {
  // A press beside a dialog closes it, as people expect; never one that guards a decision or a secret.
  if (event.target.matches?.("dialog[data-light]") && event.target.open) event.target.close();
});

document.addEventListener("close-dialog", (event) => {
  document.getElementById(event.detail.id)?.close();
});

/* Tabs within a page (the ARIA pattern: arrows move, one tab stop) ------------ */

function chooseTab(tab) {
  for (const other of tab.parentElement.querySelectorAll("[role=tab]")) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", String(chosen));
    other.tabIndex = chosen ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
  }
}

document.addEventListener("click", (event) => {
  const tab = event.target.closest("[data-tabs] [role=tab]");
  if (tab) chooseTab(tab);
});

document.addEventListener("keydown", (event) => {
  const tab = event.target.closest?.("[data-tabs] [role=tab]");
  if (!tab || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  const tabs = [...tab.parentElement.querySelectorAll("[role=tab]")];
  const next = tabs.at((tabs.indexOf(tab) + (event.key === "ArrowRight" ? 1 : -1)) % tabs.length);
  chooseTab(next);
  next.focus();
});

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
});

/* Theme ------------------------------------------------------------------ */

document.addEventListener("submit", (event) => {
  const form = event.target.closest("[data-theme-switch]");
  if (!form) return;
  event.preventDefault();
  const theme = event.submitter.value;
  const root = document.documentElement;
  if (theme === "system") delete root.dataset.theme;
  else root.dataset.theme = theme;
  for (const button of form.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button === event.submitter));
  }
  document.dispatchEvent(new CustomEvent("theme-change"));
  const body = new FormData(form);
  body.set("theme", theme);
  fetch(form.action, { method: "POST", body, redirect: "manual" });
});

/* Menus: popovers placed beside their button ------------------------------- */

document.addEventListener("toggle", (event) => {
  const menu = event.target;
  if (!menu.dataset?.anchor || event.newState !== "open") return;
  const button = document.querySelector(`[popovertarget="${menu.id}"]`);
  const box = button.getBoundingClientRect();
  menu.style.position = "fixed";
  menu.style.inset = "auto";
  const width = Math.max(menu.offsetWidth, box.width);
  menu.style.minWidth = `${box.width}px`;
  menu.style.left = `${Math.max(8, Math.min(menu.dataset.anchor === "end" ? box.right - width : box.left, innerWidth - width - 8))}px`;
  if (menu.dataset.anchor === "above") menu.style.bottom = `${innerHeight - box.top + 6}px`;
  else menu.style.top = `${box.bottom + 6}px`;
  menu.querySelector("a, button, input")?.focus();
}, true);

document.addEventListener("keydown", (event) => {
  const menu = event.target.closest?.(".menu");
  if (!menu || !["ArrowDown", "ArrowUp"].includes(event.key)) return;
  event.preventDefault();
  const items = [...menu.querySelectorAll("a, button")];
  const step = event.key === "ArrowDown" ? 1 : -1;
  items.at((items.indexOf(document.activeElement) + step) % items.length)?.focus();
});

/* htmx: errors are said aloud, never swallowed ------------------------------ */

document.addEventListener("htmx:responseError", (event) => {
  const { xhr } = event.detail;
  if (xhr.status === 403 && xhr.responseText.includes("CSRF")) return toast("This page is too old. Reload it and try again.", "error");
  const text = xhr.getResponseHeader("X-Error-Message");
  const id = xhr.getResponseHeader("X-Request-Id");
  toast((text ? decodeURIComponent(text) : `The server answered ${xhr.status}.`) + (id ? ` (request ${id})` : ""), "error");
});

document.addEventListener("htmx:sendError", (event) => {
  if (!event.detail.elt.dataset?.live) toast("No answer from the server. Check your connection and try again.", "error");
});

/* Keyboard ----------------------------------------------------------------- */

let palette;

async function openPalette() {
  const dialog = document.getElementById("palette");
  if (!dialog) return;
  palette ??= await import("./palette.js");
  palette.open(dialog);
}

function typing(target) {
  return target.closest?.("input, textarea, select, [contenteditable], .xterm");
}

let leader = 0;

document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k" && !event.target.closest?.(".xterm")) {
    event.preventDefault();
    openPalette();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "/") {
    const search = document.querySelector("#main input[type=search]");
    if (search) {
      event.preventDefault();
      search.focus();
      search.select();
    }
  } else if (event.key === "?") {
    document.getElementById("shortcuts")?.showModal();
  } else if (event.key === "g") {
    leader = Date.now();
  } else if (Date.now() - leader < 1200) {
    leader = 0;
    document.querySelector(`[data-shortcut="${CSS.escape(event.key)}"]`)?.click();
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    moveRow(event);
  }
});

function moveRow(event) {
  const row = event.target.closest?.("tbody tr");
  const table = row?.closest("table") ?? document.querySelector("#main table[data-rows]");
  if (!table || (!row && event.target !== document.body && event.target.id !== "main")) return;
  const links = [...table.querySelectorAll("tbody tr a[data-row-link]")];
  const at = links.findIndex((link) => row?.contains(link));
  const next = links[at < 0 ? 0 : at + (event.key === "ArrowDown" ? 1 : -1)];
  if (next) {
    event.preventDefault();
    next.focus();
  }
}

startLive();
