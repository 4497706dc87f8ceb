"use strict";
// The pictures of several runs.

const select = document.getElementById("metric");
if (select) {
  for (const [name, chart] of Object.entries(data.charts)) {
    select.append(make("option", { value: name, textContent: chart.label }));
  }
  const again = draw("curves", () => curves(data.charts[select.value], { showlegend: true }));
  select.addEventListener("change", again);
  axisChoice("axis", again);
  const log = document.getElementById("log");
  log.addEventListener("change", () => { chosen.log = log.checked; again(); });
}

table("runs", data.table, {
  0: (cell, i) => {
    const swatch = make("span", { className: "swatch" });
    swatch.style.borderTopColor = `var(--c${i % 8})`;
    swatch.style.borderTopStyle = ["solid", "dashed", "dotted", "dashed"][Math.floor(i / 8) % 4];
    return make("span", {}, swatch, cell);
  },
});
