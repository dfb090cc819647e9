// A box above the gallery's table of papers that leaves the rows with all of the words typed: "optim holds".
document.addEventListener("DOMContentLoaded", () => {
  const table = [...document.querySelectorAll("article table")].find((each) => each.tHead?.textContent.includes("verdict") && each.tHead.textContent.includes("room"));
  if (!table) return;
  const box = document.createElement("input");
  box.type = "search";
  box.className = "filter";
  box.placeholder = "Filter: a room, a verdict, words of a title";
  box.setAttribute("aria-label", box.placeholder);
  const rows = [...table.tBodies[0].rows].map((row) => [row, row.textContent.toLowerCase()]);
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/);
    for (const [row, text] of rows) row.hidden = !words.every((word) => text.includes(word));
  });
  (table.closest(".md-typeset__scrollwrap") ?? table).before(box);
});
