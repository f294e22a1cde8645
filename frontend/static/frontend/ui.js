// Small parts that pages and modules share. It imports nothing: hashed names allow no cycles.
const icons = document.body.dataset.icons;

export function icon(name, css = "") {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", `icon ${css}`);
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `${icons}#${name}`);
  svg.append(use);
  return svg;
}

export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

/* Toasts ---------------------------------------------------------------- */

export const toasts = document.getElementById("toasts");

export function showToasts() {
  // In the top layer, so that they stand above an open dialog.
  if (toasts.matches(":popover-open")) toasts.hidePopover();
  toasts.showPopover();
}

export function expire(item) {
  if (item.classList.contains("toast-error")) return; // an error stays until read
  setTimeout(() => item.remove(), 6000);
}

export function toast(text, level = "info") {
  const name = { error: "circle-alert", success: "circle-check", info: "info" }[level] ?? "info";
  const close = element("button", {
    class: "btn btn-ghost btn-icon btn-s",
    type: "button",
    "data-dismiss": true,
    "aria-label": "Dismiss",
  }, icon("x"));
  const item = element("div", {
    class: `toast toast-${level}`,
    role: level === "error" ? "alert" : "status",
  }, icon(name), element("p", {}, text), close);
  toasts.append(item);
  while (toasts.children.length > 4) toasts.firstElementChild.remove();
  showToasts();
  expire(item);
}

export function announce(text) {
  document.getElementById("announce").textContent = text;
}
