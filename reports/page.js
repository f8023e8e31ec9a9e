"use strict";
// All that a report does by itself: theme, values of charts, sorting, export as CSV, filters. It needs no network.

const shownTip = new WeakMap(); // plot → index of the mark whose text is shown

function setUpTheme() {
  const button = document.getElementById("theme");
  const names = ["automatic", "light", "dark"];
  let stored = null;
  try { stored = localStorage.getItem("amc-theme"); } catch { /* no storage for this page */ }
  function use(theme) {
    if (theme === "automatic") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    try { localStorage.setItem("amc-theme", theme); } catch { /* as above */ }
  }
  let theme = names.includes(stored) ? stored : "automatic";
  use(theme);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = names[(names.indexOf(theme) + 1) % names.length];
    use(theme);
  });
}

function setUpPlot(plot) {
  const marks = [...plot.querySelectorAll(".mark")];
  if (!marks.length) return;
  for (const mark of marks) { // a native tooltip beside this one would be one too many
    const title = mark.querySelector("title");
    mark.dataset.tip = title.textContent;
    title.remove();
  }
  const picture = plot.querySelector("svg");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  plot.append(tip);
  plot.tabIndex = 0;
  plot.setAttribute("role", "group");
  plot.setAttribute("aria-roledescription", "chart");
  plot.setAttribute("aria-label", `${picture.getAttribute("aria-label")}: arrow keys read the values`);
  const visible = () => marks.filter((mark) => !mark.classList.contains("filtered"));

  function hide() {
    plot.querySelector(".mark.on")?.classList.remove("on");
    tip.hidden = true;
    shownTip.delete(plot);
  }
  function show(mark, x, y) {
    plot.querySelector(".mark.on")?.classList.remove("on");
    mark.classList.add("on");
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const frame = plot.getBoundingClientRect();
    const own = mark.getBoundingClientRect();
    const left = x ?? own.left + own.width / 2 - frame.left;
    const top = y ?? own.top + Math.min(own.height, 24) / 2 - frame.top;
    const room = frame.width - tip.offsetWidth;
    tip.style.left = `${Math.max(-40, Math.min(room, left - tip.offsetWidth / 2))}px`;
    tip.style.top = `${top > tip.offsetHeight + 14 ? top - tip.offsetHeight - 12 : top + 16}px`;
    shownTip.set(plot, visible().indexOf(mark));
  }
  plot.addEventListener("pointermove", (event) => {
    const frame = plot.getBoundingClientRect();
    const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
    const under = event.target.closest?.(".mark");
    if (under) return show(under, x, y);
    let best = null, least = 20;
    for (const mark of visible()) {
      if (mark.tagName !== "svg") continue;
      const own = mark.getBoundingClientRect();
      const distance = Math.hypot(own.left + own.width / 2 - event.clientX, own.top + own.height / 2 - event.clientY);
      if (distance < least) [best, least] = [mark, distance];
    }
    return best ? show(best) : hide();
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const now = visible();
    const at = shownTip.get(plot) ?? -1;
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at < 0 ? now.length - 1 : at - 1,
      ArrowUp: at < 0 ? now.length - 1 : at - 1, Home: 0, End: now.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined || !now.length) return;
    event.preventDefault();
    show(now[(to + now.length) % now.length]);
  });
}

const valueOf = (cell) => cell.dataset.value ?? cell.textContent.trim();

function setUpSorting(table) {
  const body = table.tBodies[0];
  if (!body || body.rows.length < 2) return;
  for (const [index, head] of [...table.tHead.rows[0].cells].entries()) {
    if (!head.textContent.trim()) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const numeric = [...body.rows].some((row) => row.cells[index].dataset.value !== undefined);
      const key = (row) => numeric ? Number(row.cells[index].dataset.value ?? NaN) : valueOf(row.cells[index]);
      const compare = (a, b) => {
        const [first, second] = [key(a), key(b)];
        if (!numeric) return sign * first.localeCompare(second, undefined, { numeric: true });
        if (Number.isNaN(first) || Number.isNaN(second)) return Number.isNaN(first) - Number.isNaN(second);
        return sign * (first - second);
      };
      body.append(...[...body.rows].sort(compare));
    });
  }
}

function csv(table) {
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => ({ text: valueOf(cell), number: cell.dataset.value !== undefined })));
  const quoted = ({ text, number }) => {
    const safe = !number && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text; // no formula in a spreadsheet
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [heads.map((text) => ({ text, number: false })), ...rows].map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";
}

function setUpExport(table) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "export";
  button.textContent = "Save as CSV";
  button.setAttribute("aria-label", `Save as CSV: ${table.caption.textContent}`);
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(table)], { type: "text/csv" }));
    link.download = `${table.dataset.name}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
  table.closest(".scroll").after(button);
}

function focusWhatScrolls() { // a box that scrolls sideways must be reachable by keyboard
  for (const box of document.querySelectorAll(".scroll, pre")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

function drawFronts() { // the best of the points that the filters leave, by rising cost
  for (const line of document.querySelectorAll(".filterable polyline.front")) {
    const plot = line.closest(".plot");
    const points = [...plot.querySelectorAll("svg.mark[data-tags]:not(.filtered)")]
      .map((mark) => [parseFloat(mark.getAttribute("x")), parseFloat(mark.getAttribute("y"))])
      .sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    const front = [];
    for (const [x, y] of points) if (!front.length || y < front.at(-1)[1]) front.push([x, y]);
    line.setAttribute("points", front.map(([x, y]) => `${10 * x},${10 * y}`).join(" "));
  }
}

function setUpFilters(filters) {
  filters.hidden = false;
  const boxes = [...filters.querySelectorAll("input")];
  filters.addEventListener("change", () => {
    const off = boxes.filter((box) => !box.checked).map((box) => box.value);
    for (const item of document.querySelectorAll("[data-tags]")) {
      item.classList.toggle("filtered", item.dataset.tags.split(" ").some((tag) => off.includes(tag)));
    }
    drawFronts();
  });
}

setUpTheme();
document.querySelectorAll(".plot").forEach(setUpPlot);
document.querySelectorAll("table.sortable").forEach(setUpSorting);
document.querySelectorAll("table[data-name]").forEach(setUpExport);
document.querySelectorAll("div.filters").forEach(setUpFilters);
focusWhatScrolls();
addEventListener("resize", focusWhatScrolls);
document.addEventListener("toggle", focusWhatScrolls, true);
