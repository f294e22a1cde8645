// Charts of samples in columns, and the same samples as a table.
import { element } from "./ui.js";
import uPlot from "./vendor/uplot.js";

const holder = document.querySelector("[data-charts]");
const figures = [...holder.querySelectorAll("[data-chart]")];
const table = document.querySelector("#metrics-table tbody");
const toggle = document.querySelector("[data-toggle-table]");
const plots = new Map();
const COLOURS = ["--series-1", "--series-2", "--series-3", "--series-4"];
const probe = document.body.appendChild(element("i", { hidden: true }));

// light-dark() has no computed value as a custom property; a real colour property does.
function colour(token) {
  probe.style.color = `var(${token})`;
  return getComputedStyle(probe).color;
}

function size(bytes) {
  let amount = bytes;
  for (const unit of ["B", "KB", "MB", "GB"]) {
    if (Math.abs(amount) < 1024) return `${amount >= 10 || unit === "B" ? Math.round(amount) : amount.toFixed(1)} ${unit}`;
    amount /= 1024;
  }
  return `${amount.toFixed(1)} TB`;
}

// Sizes get round binary ticks: 256 MB, 512 MB, 1 GB.
const BINARY_STEPS = Array.from({ length: 44 }, (_, power) => 2 ** power);

function clock(tick, step) {
  const at = new Date(tick * 1000);
  const time = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: step < 60 ? "2-digit" : undefined, hour12: false });
  return step >= 86_400 ? at.toLocaleDateString() : time;
}

const WORDS = {
  bytes: size,
  percent: (value) => `${Math.round(value)}%`,
  count: (value) => (Number.isInteger(value) ? String(value) : ""),
  rate: (value) => value.toFixed(value < 10 && value % 1 ? 1 : 0),
};
const words = (unit) => WORDS[unit];

function draw(figure, at, values, limit, marks) {
  const body = figure.querySelector(".chart-body");
  const unit = words(figure.dataset.unit);
  const line = colour(COLOURS[figures.indexOf(figure) % COLOURS.length]);
  const axis = { stroke: colour("--text-3"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px Geist" };
  plots.get(figure)?.destroy();
  body.replaceChildren();
  const plot = new uPlot({
    width: body.clientWidth - 16,
    height: 200,
    padding: [8, 8, 0, 0],
    legend: { show: false },
    cursor: { y: false, points: { size: 7 } },
    scales: { y: { range: (self, low, high) => [0, Math.max(limit ?? 0, high || 1)] } },
    axes: [
      { ...axis, space: 80, size: 30, values: (self, ticks, index, space, step) => ticks.map((tick) => clock(tick, step)) },
      { ...axis, size: 58, incrs: figure.dataset.unit === "bytes" ? BINARY_STEPS : undefined, values: (self, ticks) => ticks.map(unit) },
    ],
    series: [{}, { stroke: line, width: 1.75, fill: line.replace("rgb(", "rgba(").replace(")", ", 0.12)"), points: { show: false }, spanGaps: false }],
    hooks: {
      setCursor: [(self) => {
        const index = self.cursor.idx;
        const summary = figure.querySelector("[data-summary]");
        summary.textContent = index == null ? figure.dataset.text : `${new Date(at[index] * 1000).toLocaleTimeString()}: ${unit(values[index])}`;
      }],
      draw: [(self) => {
        const { ctx, bbox } = self;
        ctx.save();
        ctx.strokeStyle = colour("--text-3");
        ctx.setLineDash([3, 4]);
        for (const mark of marks) {
          const x = self.valToPos(mark.at, "x", true);
          if (x < bbox.left || x > bbox.left + bbox.width) continue;
          ctx.beginPath();
          ctx.moveTo(x, bbox.top);
          ctx.lineTo(x, bbox.top + bbox.height);
          ctx.stroke();
        }
        ctx.restore();
      }],
    },
  }, [at, values], body);
  plots.set(figure, plot);
}

async function load() {
  let data;
  try {
    const answer = await fetch(holder.dataset.charts, { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    data = await answer.json();
  } catch (error) {
    for (const figure of figures) {
      const note = figure.querySelector("[data-empty]");
      if (note) note.textContent = `Could not load the samples (${error.message}). Trying again…`;
    }
    return;
  }
  for (const figure of figures) {
    const values = data[figure.dataset.chart];
    const known = values.filter((value) => value != null);
    const unit = words(figure.dataset.unit);
    if (!known.length) {
      const note = figure.querySelector("[data-empty]");
      if (note) note.textContent = "No samples in this time.";
      continue;
    }
    const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
    figure.dataset.text = `now ${unit(known.at(-1))}, mean ${unit(mean)}, peak ${unit(Math.max(...known))}`;
    figure.querySelector("[data-summary]").textContent = figure.dataset.text;
    draw(figure, data.at, values, data.limits[figure.dataset.chart], data.marks);
    const canvas = figure.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${figure.querySelector("h2").textContent}: ${figure.dataset.text}`);
  }
  table.replaceChildren(...data.at.map((at, index) => element("tr", {},
    element("td", {}, new Date(at * 1000).toISOString().slice(0, 19).replace("T", " ")),
    ...figures.map((figure) => element("td", { class: "num" }, words(figure.dataset.unit)(data[figure.dataset.chart][index] ?? 0))))).reverse());
}

toggle.addEventListener("click", () => {
  const section = document.getElementById("metrics-table");
  section.hidden = !section.hidden;
  toggle.setAttribute("aria-pressed", String(!section.hidden));
});

let resizing;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(load, 150);
});
document.addEventListener("theme-change", load);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", load);

await load();
if (holder.dataset.refresh) setInterval(() => { if (!document.hidden) load(); }, holder.dataset.refresh * 1000);
