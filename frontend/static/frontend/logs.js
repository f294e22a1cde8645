// Follow a log: keep its end in sight while "Follow" is on, and stop when the reader scrolls up.
const follow = document.getElementById("follow");
const lines = () => document.querySelector(".log-scroll");

function settle() {
  const box = lines();
  if (box && follow.checked) box.scrollTop = box.scrollHeight;
  document.getElementById("logs").toggleAttribute("data-live-paused", !follow.checked);
}

document.addEventListener("htmx:afterSettle", settle);
follow.addEventListener("change", () => {
  settle();
  if (follow.checked) window.htmx.trigger("#logs", "live");
});
document.addEventListener("wheel", (event) => {
  if (event.deltaY < 0 && event.target.closest?.(".log-scroll") && follow.checked) follow.click();
}, { passive: true });
settle();
