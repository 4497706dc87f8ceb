"use strict";
// What the report and the comparison share: the theme, curves with a common horizontal axis, sortable tables.

const data = JSON.parse(document.getElementById("data").textContent);
const DASHES = ["solid", "dash", "dot", "dashdot"];
const redraws = [];

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function colour(i) {
  return css(`--c${i % 8}`);
}

function fade(hex, alpha) {
  const n = parseInt(hex.slice(1), 16);
  return `rgba(${n >> 16},${(n >> 8) & 255},${n & 255},${alpha})`;
}

// The colour that lies at the share `part` of the way between two.
function mix(from, to, part) {
  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const [a, b] = [channels(from), channels(to)];
  return `rgb(${a.map((v, i) => Math.round(v + (b[i] - v) * part)).join(",")})`;
}

// Plotly reads a little HTML in its texts; names from a run are only text.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function short(text, limit) {
  const s = String(text);
  return plain(s.length > limit ? s.slice(0, limit - 1) + "…" : s);
}

// Text in lines of about `width` characters, at most six.
function folded(text, width = 42) {
  const lines = [""];
  for (const word of String(text).slice(0, 6 * width).split(/\s+/)) {
    for (let rest = [...word]; rest.length; rest = rest.slice(width)) {
      const piece = rest.slice(0, width).join("");
      if (lines.at(-1).length + piece.length >= width) lines.push("");
      lines.push(`${lines.pop()} ${piece}`.trim());
    }
  }
  return lines.filter(Boolean).map(plain).join("<br>");
}

function make(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties || {});
  node.append(...children);
  return node;
}

function layout(extra) {
  const axis = { gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, automargin: true, ticks: "" };
  const { xaxis, yaxis, ...rest } = extra;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--soft") },
    margin: { l: 48, r: 12, t: 8, b: 42 }, showlegend: true, hovermode: "x unified", separators: ".,",
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", font: { size: 12, color: css("--ink") } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink"), size: 12 } },
    ...rest, xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis },
  };
}

// `figure()` gives {data, layout}; it is asked again when the theme or a choice of the reader changes.
function draw(id, figure) {
  const node = document.getElementById(id);
  if (!node) return () => {};
  const again = () => {
    const { data: traces, layout: extra } = figure();
    Plotly.react(node, traces, layout(extra), {
      responsive: true, displaylogo: false,
      displayModeBar: "hover", modeBarButtons: [["toImage", "resetScale2d"]],
    });
  };
  again();
  redraws.push(again);
  return again;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach((again) => again()));

const chosen = { axis: "round", log: false };

function timescale(traces) {
  const last = Math.max(0, ...traces.flatMap((t) => t.x.seconds.slice(-1)));
  return last > 7200 ? [3600, "hours"] : last > 300 ? [60, "minutes"] : [1, "seconds"];
}

// chart: {share, traces: [{name, x: {round, bytes, seconds, updates}, y, low, high, look}]}
function curves(chart, options) {
  const axis = chosen.axis;
  const log = chosen.log && !chart.share;
  const [unit, unitName] = axis === "seconds" ? timescale(chart.traces) : [1, ""];
  const traces = [];
  chart.traces.forEach((trace, i) => {
    const look = trace.look === undefined ? i : trace.look;
    const x = trace.x[axis].map((v) => v / unit);
    const dash = DASHES[Math.floor(look / 8) % 4];
    const group = `g${i}`;
    if (trace.low) {
      const edge = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: group };
      traces.push({ ...edge, y: trace.low });
      traces.push({ ...edge, y: trace.high, fill: "tonexty", fillcolor: fade(colour(look), 0.16) });
    }
    traces.push({
      x, y: trace.y, name: short(trace.name, 40), legendgroup: group, mode: x.length > 40 ? "lines" : "lines+markers",
      line: { color: colour(look), width: 2, dash }, marker: { size: 5 },
      hovertemplate: chart.share ? "%{y:.2%}" : "%{y:.5~g}",
    });
  });
  const titles = { round: "round", bytes: "bytes sent up and down", seconds: unitName, updates: "client updates",
    rounds_f: "rounds with group f", rounds_g: "rounds with group g", messages: "messages", time: "transmission time, whole vectors" };
  const formats = { bytes: { tickformat: "~s", ticksuffix: "B", hoverformat: ".3s" }, seconds: { hoverformat: ".3~f" } };
  return {
    data: traces,
    layout: {
      showlegend: traces.length > 1, ...options,
      xaxis: { title: { text: titles[axis], standoff: 8 }, tickformat: ",~f", ...(formats[axis] || {}) },
      yaxis: chart.share ? { tickformat: ".4~p" } : { type: log ? "log" : "linear", tickformat: log ? "~g" : undefined },
    },
  };
}

// Buttons of which one is pressed; `pick` is called with the key of the new one.
function choice(id, entries, current, pick) {
  const node = document.getElementById(id);
  if (!node) return;
  const buttons = entries.map(([key, text]) => {
    const button = make("button", { type: "button", textContent: text });
    button.setAttribute("aria-pressed", String(key === current));
    button.addEventListener("click", () => {
      buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
      pick(key);
    });
    return button;
  });
  node.append(...buttons);
}

function axisChoice(id, after) {
  const named = [["round", "Rounds"], ["bytes", "Bytes"], ["seconds", "Seconds"], ["updates", "Client updates"]];
  const counters = [["rounds_f", "Rounds with f"], ["rounds_g", "Rounds with g"], ["messages", "Messages"], ["time", "Transmission"]];
  const traces = ["accuracy", "loss"].flatMap((key) => data[key] ? data[key].traces : []);
  const kept = counters.filter(([key]) => traces.some((trace) => key in trace.x));
  choice(id, [...named, ...kept], "round",
    (key) => { chosen.axis = key; after(); });
}

// columns: [{name, right, long, hint}]; a cell is a value, or [value to sort by, text to show]; `marked` rows stand out.
function table(id, { columns, rows, marked = [], sort = null }, render = {}) {
  const node = document.getElementById(id);
  if (!node) return;
  const key = (cell) => (Array.isArray(cell) ? cell[0] : cell);
  const text = (cell) => String((Array.isArray(cell) ? cell[1] : cell) ?? "–");
  const bright = new Set(marked);
  const indexed = rows.map((cells, i) => ({ cells, bright: bright.has(i), i }));
  let [column, down] = sort || [null, false];
  let shown = 50;
  let wanted = "";
  const body = make("tbody");
  const heads = columns.map((c, i) => {
    const button = make("button", { type: "button", textContent: c.name, title: c.hint || "" });
    const head = make("th", { className: c.right ? "right" : "", scope: "col" }, button);
    button.addEventListener("click", () => {
      down = column === i ? !down : Boolean(c.right);
      column = i;
      show();
    });
    return head;
  });
  const more = make("button", { type: "button", className: "more" });
  more.addEventListener("click", () => { shown += 500; show(); });
  const search = make("input", { type: "search", placeholder: "filter", ariaLabel: "filter the table" });
  search.addEventListener("input", () => { wanted = search.value.toLowerCase(); shown = 50; show(); });

  function order(a, b) {
    const [x, y] = [key(a.cells[column]), key(b.cells[column])];
    const [xNone, yNone] = [x === null || x === undefined, y === null || y === undefined];
    if (xNone || yNone) return xNone - yNone || a.i - b.i;
    const by = typeof x === "number" && typeof y === "number" ? x - y
      : String(x).localeCompare(String(y), undefined, { numeric: true });
    return (down ? -by : by) || a.i - b.i;
  }
  function show() {
    const found = indexed.filter((r) => !wanted || r.cells.some((c) => text(c).toLowerCase().includes(wanted)));
    if (column !== null) found.sort(order);
    heads.forEach((h, i) => {
      if (i === column) h.setAttribute("aria-sort", down ? "descending" : "ascending");
      else h.removeAttribute("aria-sort");
    });
    body.replaceChildren(...found.slice(0, shown).map((r) => make("tr", { className: r.bright ? "marked" : "" },
      ...r.cells.map((c, i) => make("td", { className: columns[i].right ? "right" : columns[i].long ? "long" : "" },
        render[i] ? render[i](c, r.i) : text(c))))));
    more.hidden = found.length <= shown;
    more.textContent = `show more (${(found.length - shown).toLocaleString("en")} left)`;
  }
  show();
  if (rows.length > 12) node.append(search);
  node.append(make("div", { className: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body)), more);
}
