// Tooltips for the pointer and the arrow keys, the choice of a cost axis, sorting, filtering, copying.
const charts = JSON.parse(document.getElementById("points").textContent);
const make = (tag, text, kind) => { const e = document.createElement(tag); if (kind) e.className = kind; e.append(text); return e; };
const hiddenSides = (node) => JSON.parse(node.closest(".study").dataset.hidden || "[]");

for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const series = charts[+figure.dataset.chart], nearest = "nearest" in figure.dataset;
  const svg = figure.querySelector("svg.chart"), tip = figure.querySelector(".tip"), cursor = svg.querySelector(".cursor");
  const distance = (p, x, y) => Math.hypot(p[0] - x, nearest ? p[1] - y : 0);
  const near = (points, x, y) => points.reduce((a, b) => (distance(b, x, y) < distance(a, x, y) ? b : a));
  const row = (kind, text) => { const r = make("div", ""); if (kind) r.append(make("span", "", "key " + kind)); r.append(text); return r; };
  let place = null;
  const show = (x, y) => {
    const shown = series.filter((s) => !hiddenSides(figure).includes(s.side));
    if (!shown.length) return hide();
    let found = shown.map((s) => ({ ...s, at: near(s.points, x, y) })).sort((a, b) => distance(a.at, x, y) - distance(b.at, x, y));
    const first = found[0].at;
    found = nearest ? found.slice(0, 1) : found.sort((a, b) => a.side - b.side);
    place = [first[0], first[1]];
    tip.replaceChildren(row("", first[3]), ...found.map((s) => row(s.kind, s.title + " " + s.at[2])));
    tip.style.opacity = 1;
    if (cursor) { cursor.style.opacity = 1; cursor.setAttribute("x1", first[0]); cursor.setAttribute("x2", first[0]); }
    const box = svg.getBoundingClientRect(), px = (first[0] * box.width) / 520;
    tip.style.left = (px + tip.offsetWidth + 24 > box.width ? Math.max(0, px - tip.offsetWidth - 12) : px + 14) + "px";
    tip.style.top = box.top - figure.getBoundingClientRect().top + 10 + "px";
  };
  const hide = () => { tip.style.opacity = 0; place = null; if (cursor) cursor.style.opacity = 0; };
  const follow = (event) => {
    const box = svg.getBoundingClientRect(), scale = 520 / box.width;
    show((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide()); // a finger that was lifted has not left
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    const direction = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!direction) return;
    event.preventDefault();
    const points = series.filter((s) => !hiddenSides(figure).includes(s.side)).flatMap((s) => s.points).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    const from = place || [direction > 0 ? -1 : 521, 0];
    const beyond = points.filter((p) => (nearest && p[0] === from[0] ? (p[1] - from[1]) * direction > 0 : (p[0] - from[0]) * direction > 1e-9));
    const next = direction > 0 ? beyond[0] : beyond[beyond.length - 1];
    if (next) show(next[0], next[1]);
  });
}

for (const study of document.querySelectorAll(".study")) {
  const filter = study.querySelector("input[type=search]"), said = study.querySelector(".found");
  const apply = () => {
    const words = filter.value.toLowerCase().split(/[\s,]+/).filter(Boolean), rows = [...study.querySelectorAll("tr[data-side]")];
    const gone = rows.filter((r) => words.length && !words.some((w) => r.dataset.method.toLowerCase().includes(w))).map((r) => +r.dataset.side);
    study.dataset.hidden = JSON.stringify(gone);
    for (const e of study.querySelectorAll("[data-side]")) e.toggleAttribute("hidden", gone.includes(+e.dataset.side));
    for (const e of study.querySelectorAll("svg [data-side]")) e.style.display = gone.includes(+e.dataset.side) ? "none" : "";
    said.textContent = words.length ? `${rows.length - gone.length} of ${rows.length} methods` : "";
  };
  filter.addEventListener("input", apply);
  for (const header of study.querySelectorAll("th[aria-sort]")) {
    header.querySelector("button").addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending", index = header.cellIndex, body = header.closest("table").tBodies[0];
      for (const other of header.parentNode.children) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (r) => r.cells[index].dataset.key, number = [...body.rows].every((r) => key(r) !== "" && !isNaN(key(r)));
      const order = (a, b) => (number ? key(a) - key(b) : key(a).localeCompare(key(b))) * (up ? 1 : -1);
      body.append(...[...body.rows].sort(order));
    });
  }
  const figures = [...study.querySelectorAll("figure[data-axis]")];
  const choose = (axis) => figures.forEach((figure) => (figure.hidden = figure.dataset.axis !== axis));
  for (const radio of study.querySelectorAll("input[type=radio]")) {
    radio.addEventListener("change", () => choose(radio.value));
    if (radio.checked) choose(radio.value);
  }
}

for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const code = button.parentNode.querySelector("pre");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
