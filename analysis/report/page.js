"use strict";
// Sort, filter, save, open. Nothing here is needed to read the page, and nothing is fetched.
document.documentElement.classList.add("scripted");
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const grid = (name) => document.querySelector(`table[data-grid="${CSS.escape(name)}"]`);

// --- what can be saved or opened: compressed JSON, unpacked when it is first asked for
let unpacked = null;
async function files() {
  if (unpacked === null) {
    const bytes = Uint8Array.from(atob(document.getElementById("pack").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    unpacked = await new Response(stream).json();
  }
  return unpacked;
}
function save(name, text, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name.replaceAll("/", "-");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
for (const button of all("[data-save]"))
  button.addEventListener("click", async () => save(button.dataset.save, (await files())[button.dataset.save], "text/csv"));
for (const button of all("[data-svg]"))
  button.addEventListener("click", () => {
    const text = new XMLSerializer().serializeToString(button.closest("figure").querySelector("svg"));
    save(button.dataset.svg, text.replace(/var\(--c-([0-9a-f]{6})\)/g, "#$1"), "image/svg+xml");
  });

const dialog = document.getElementById("source");
let shown = null;
for (const button of all("[data-open]"))
  button.addEventListener("click", async () => {
    shown = button.dataset.open;
    const text = (await files())[shown];
    document.getElementById("source-name").textContent = shown.slice(shown.indexOf("/") + 1);
    document.getElementById("source-text").textContent = JSON.stringify(JSON.parse(text), null, 2);
    dialog.showModal();
  });
document.getElementById("source-close").addEventListener("click", () => dialog.close());
document.getElementById("source-save").addEventListener("click", async () => save(shown, (await files())[shown], "application/json"));

// --- sort: numbers as numbers, what is missing last, equals as they were
function compare(a, b, down) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const order = isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return down ? -order : order;
}
for (const head of all("table[data-grid] th button"))
  head.addEventListener("click", () => {
    const cell = head.closest("th"), table = head.closest("table"), body = table.tBodies[0];
    const down = cell.getAttribute("aria-sort") === "ascending";
    for (const other of all("th", table)) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[cell.cellIndex].dataset.key;
    body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b), down)));
  });

// --- filter: every word somewhere in the line, and every choice met
function filter(name) {
  const table = grid(name), quoted = CSS.escape(name);
  const words = document.querySelector(`[data-filter="${quoted}"]`).value.toLowerCase().split(/\s+/).filter(Boolean);
  const choices = all(`[data-facet="${quoted}"]`).filter((s) => s.value !== "");
  let count = 0;
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    const meets = (s) => row.cells[Number(s.dataset.column)].textContent.trim() === s.value;
    row.hidden = !(words.every((w) => text.includes(w)) && choices.every(meets));
    count += !row.hidden;
  }
  const total = table.tBodies[0].rows.length;
  document.querySelector(`[data-count="${quoted}"]`).textContent = (count === total ? "" : `${count} of `) + (total === 1 ? "1 line" : `${total} lines`);
}
for (const input of all("[data-filter]")) {
  input.addEventListener("input", () => filter(input.dataset.filter));
  filter(input.dataset.filter);
}
for (const choice of all("[data-facet]")) choice.addEventListener("change", () => filter(choice.dataset.facet));
function reset(name) {
  document.querySelector(`[data-filter="${CSS.escape(name)}"]`).value = "";
  for (const choice of all(`[data-facet="${CSS.escape(name)}"]`)) choice.value = "";
  filter(name);
}
for (const button of all("[data-reset]")) button.addEventListener("click", () => reset(button.dataset.reset));

// --- a link to a line that a filter hides shows it
function reveal() {
  const line = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (line instanceof HTMLTableRowElement && line.hidden) reset(line.closest("table").dataset.grid);
  if (line instanceof HTMLTableRowElement) line.scrollIntoView({ block: "center" });
}
addEventListener("hashchange", reveal);
if (location.hash) reveal();

// --- theme: as the system, or as chosen
const themes = [["", "as the system"], ["light", "light"], ["dark", "dark"]];
const chooser = document.getElementById("theme");
let theme = 0;
chooser.addEventListener("click", () => {
  theme = (theme + 1) % themes.length;
  document.documentElement.dataset.theme = themes[theme][0];
  chooser.textContent = `Theme: ${themes[theme][1]}`;
});
