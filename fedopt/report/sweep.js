"use strict";
// The pictures and tables of a sweep.

// 0 at the worst end of the scale and 1 at the best
function level(value) {
  if (value === null || !data.scale) return null;
  const map = data.scale.steep ? Math.log : (v) => v;
  const part = (map(value) - map(data.scale.low)) / (map(data.scale.high) - map(data.scale.low));
  return data.scale.up ? part : 1 - part;
}

function lightness(hex) {
  const n = parseInt(hex.slice(1), 16);
  const part = [n >> 16, (n >> 8) & 255, n & 255].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
}

// The colour of the scale at a level, and that of a text that can be read on it.
function shade(at) {
  const [low, high] = [css("--low"), css("--accent")].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return "#" + low.map((v, i) => Math.round(v + at * (high[i] - v)).toString(16).padStart(2, "0")).join("");
}

function legible(at) {
  const ground = lightness(shade(at)) + 0.05;
  return 1.05 / ground > ground / (lightness("#101418") + 0.05) ? "#ffffff" : "#101418";
}

function lines(text) {
  return text.split("\n").map((line) => short(line, 16)).join("<br>");
}

// A name over a column: a long one in two lines.
function head(name) {
  const [, first, second] = name.length > 9 ? name.match(/^(.*_)([^_]+)$/) || [null, name, ""] : [null, name, ""];
  return short(first, 14) + (second ? `<br>${short(second, 14)}` : "");
}

function heat(panel) {
  const rows = panel.rows.map((_, i) => i);
  const traces = panel.blocks.map((block) => ({
    type: "heatmap", x: block.x, y: rows, z: block.z.map((row) => row.map(level)), coloraxis: "coloraxis", xgap: 2, ygap: 2,
    customdata: block.hover.map((row) => row.map((text) => folded(text, 60))), hovertemplate: "%{customdata}<extra></extra>",
    hoverongaps: false,
  }));
  const colours = panel.words.map((word) => (word.z === null ? css(word.bad ? "--warn" : "--soft") : legible(level(word.z))));
  traces.push({
    type: "scatter", mode: "text", x: panel.words.map((word) => word.x), y: panel.words.map((word) => word.y),
    text: panel.words.map((word) => lines(word.text)), textfont: { color: colours, size: 12 },
    customdata: panel.words.map((word) => folded(word.hover, 60)), hovertemplate: "%{customdata}<extra></extra>",
  });
  const end = Math.max(0, ...panel.blocks.flatMap((block) => (block.x.length > block.z[0].length ? [block.x.at(-1) - 0.5] : block.x)));
  const ticks = data.scale ? data.scale.ticks : [];
  return {
    data: traces,
    layout: {
      showlegend: false, hovermode: "closest", margin: { l: 48, r: 12, t: 8, b: 8 },
      xaxis: {
        side: "top", showgrid: false, range: [-0.55, end + 0.55], tickvals: panel.ticks.map((tick) => tick[0]),
        ticktext: panel.ticks.map(([, name, clean]) => head(name) + (clean ? "<br><i>no attack</i>" : "")),
        tickfont: { color: css("--ink") }, fixedrange: true,
      },
      yaxis: {
        showgrid: false, range: [panel.rows.length - 0.45, -0.55], tickvals: rows,
        ticktext: panel.rows.map((name) => short(name, 22)), tickfont: { color: css("--ink") }, fixedrange: true,
      },
      coloraxis: {
        cmin: 0, cmax: 1, colorscale: [[0, css("--low")], [1, css("--accent")]],
        colorbar: {
          thickness: 10, outlinewidth: 0, tickvals: ticks.map(([value]) => level(value)),
          ticktext: ticks.map(([, text]) => plain(text)),
        },
      },
    },
  };
}

data.panels.forEach((panel, i) => draw(`panel-${i}`, () => heat(panel)));

// Names stand beside their points, where no error bar is, and towards the middle, where they are not cut off.
function against(cost, key, title, ticks) {
  const every = cost.traces.flatMap((trace) => trace[key]);
  const [least, most] = [Math.min(...every), Math.max(...every)];
  const log = least > 0 && most > 10 * least;
  const marks = [...Array(15).keys()].flatMap((n) => [1, 2, 5].map((k) => k * 10 ** n));
  const middle = log ? Math.sqrt(least * most) : (least + most) / 2;
  return {
    data: cost.traces.map((trace, i) => ({
      x: trace[key], y: trace.y, name: plain(trace.name), mode: "markers+text", text: trace.rows.map((row) => short(row, 22)),
      textposition: trace[key].map((x) => (x > middle ? "middle left" : "middle right")), textfont: { size: 11 }, marker: { size: 9, color: colour(i) },
      error_y: { type: "data", array: trace.error, color: fade(colour(i), 0.6), thickness: 1.5, width: 3 },
      hovertemplate: "%{text}<br>%{x}: %{y:.4~g}<extra></extra>", cliponaxis: false,
    })),
    layout: {
      showlegend: cost.traces.length > 1, hovermode: "closest", margin: { l: 56, r: 40, t: 24, b: 42 },
      xaxis: { title: { text: title, standoff: 8 }, ...ticks, ...(log ? { type: "log", tickvals: marks } : {}) },
      yaxis: { title: { text: cost.measure, standoff: 6 }, ...(cost.share ? { tickformat: ".4~p" } : {}) },
    },
  };
}

(data.costs || []).forEach((cost, i) => {
  draw(`cost-${i}-updates`, () => against(cost, "updates", "client updates", { tickformat: ",~f" }));
  draw(`cost-${i}-bytes`, () => against(cost, "bytes", "bytes sent up", { tickformat: "~s", ticksuffix: "B" }));
});
if (data.cost) table("cost", data.cost);

if (data.ranks) table("ranks", data.ranks);
table("worst", data.worst);
if (data.troubles) table("troubles", data.troubles);

table("cells", data.cells, {
  [data.cells.columns.length - 1]: (links) => make("span", {}, ...links.flatMap(([seed, href], i) => [
    ...(i ? [" "] : []), make("a", { href, textContent: seed, title: `report of seed ${seed}` }),
  ])),
});
