// Go to anything: the pages of the sidebar at once, objects of the team from the server.
import { element, icon } from "./ui.js";

let input;
let list;
let none;
let dialog;
let active = 0;
let asked = 0;
let objects = [];
let controller;
let timer;

function pages() {
  return [...document.querySelectorAll("#sidebar nav a, #user-menu a, #team-menu a")].map((link) => ({
    label: link.closest("#team-menu") ? `Team: ${link.textContent.trim()}` : link.textContent.trim(),
    url: link.href,
    icon: link.querySelector("use")?.getAttribute("href").split("#")[1] ?? "users",
    kind: "Page",
  }));
}

function matches(label, words) {
  const text = label.toLowerCase();
  return words.every((word) => text.includes(word));
}

function show() {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [...pages().filter((page) => matches(page.label, words)), ...(words.length ? objects : [])];
  list.replaceChildren(...found.slice(0, 40).map((item, index) => {
    const option = element("div", { class: "menu-item", role: "option", id: `palette-${index}`, "aria-selected": "false" },
      icon(item.icon), element("span", { class: item.kind === "Sandbox" ? "mono" : "" }, item.label),
      element("span", { class: "end" }, item.detail || item.kind));
    option.dataset.url = item.url;
    return option;
  }));
  none.hidden = found.length > 0;
  list.hidden = !found.length;
  select(0);
}

function select(index) {
  const options = list.children;
  if (!options.length) {
    input.removeAttribute("aria-activedescendant");
    return;
  }
  active = (index + options.length) % options.length;
  for (const option of options) option.setAttribute("aria-selected", "false");
  options[active].setAttribute("aria-selected", "true");
  options[active].scrollIntoView({ block: "nearest" });
  input.setAttribute("aria-activedescendant", options[active].id);
}

function go(option) {
  if (!option) return;
  dialog.close();
  location.assign(option.dataset.url);
}

function ask() {
  clearTimeout(timer);
  const words = input.value.trim();
  if (!words) {
    objects = [];
    show();
    return;
  }
  timer = setTimeout(async () => {
    const number = ++asked;
    controller?.abort();
    controller = new AbortController();
    try {
      const url = new URL(document.body.dataset.palette, location.href);
      url.searchParams.set("q", words);
      const answer = await fetch(url, { signal: controller.signal, headers: { Accept: "application/json" } });
      if (!answer.ok || number !== asked) return;
      objects = (await answer.json()).results;
      show();
    } catch (error) {
      if (error.name !== "AbortError") objects = [];
    }
  }, 120);
}

export function open(node) {
  if (!dialog) {
    dialog = node;
    dialog.dataset.light = "";
    input = node.querySelector("input");
    list = node.querySelector(".palette-list");
    none = node.querySelector(".palette-none");
    input.addEventListener("input", () => {
      show();
      ask();
    });
    input.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        select(active + (event.key === "ArrowDown" ? 1 : -1));
      } else if (event.key === "Enter") {
        event.preventDefault();
        go(list.children[active]);
      }
    });
    list.addEventListener("click", (event) => go(event.target.closest("[role=option]")));
  }
  if (dialog.open) return;
  input.value = "";
  objects = [];
  dialog.showModal();
  show();
}
