// Choose rows of the list, and act on them together. The rows are replaced by live snapshots, so
// the choice is kept here by id.
const form = document.querySelector("[data-bulk]");
const chosen = new Set();
const boxes = () => [...document.querySelectorAll("#sandboxes input[name=sandbox]")];

function show() {
  const shown = boxes();
  const present = new Set(shown.map((box) => box.value));
  for (const id of chosen) if (!present.has(id)) chosen.delete(id);
  for (const box of shown) box.checked = chosen.has(box.value);
  const all = document.querySelector("[data-bulk-all]");
  if (all) {
    all.checked = shown.length > 0 && chosen.size === shown.length;
    all.indeterminate = chosen.size > 0 && !all.checked;
  }
  form.hidden = !chosen.size;
  form.querySelector("[data-bulk-count]").textContent = chosen.size;
}

if (form) {
  document.addEventListener("change", (event) => {
    if (event.target.matches("#sandboxes input[name=sandbox]")) {
      if (event.target.checked) chosen.add(event.target.value);
      else chosen.delete(event.target.value);
    } else if (event.target.matches("[data-bulk-all]")) {
      for (const box of boxes()) {
        if (event.target.checked) chosen.add(box.value);
        else chosen.delete(box.value);
      }
    } else {
      return;
    }
    show();
  });
  form.querySelector("[data-bulk-clear]").addEventListener("click", () => {
    chosen.clear();
    show();
  });
  form.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.successful) chosen.clear();
    show();
  });
  document.addEventListener("htmx:afterSettle", show);
  show();
}
