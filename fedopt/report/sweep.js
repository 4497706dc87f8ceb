"use strict";
// The pictures and tables of a sweep.

// 0 at the worst end of the scale and 1 at the best
function level(value) {
  if (value === null || !data.scale) return null;
  const map = data.scale.steep ? Math.log : (v) => v;
  const part = (map(value) - map(data.scale.low)) / (map(data.scale.high) - map(data.scale.low));
  return data.scale.up ? part : 1 - part;
}

function heat(panel) {
  const rows = panel.rows.map((_, i) => i);
  const traces = panel.blocks.map((block) => ({
    type: "heatmap", x: block.x, y: rows, z: block.z.map((row) => row.map(level)), coloraxis: "coloraxis", xgap: 2, ygap: 2,
    text: block.text.map((row) => row.map((text) => short(text, 28))), texttemplate: "%{text}",
    customdata: block.hover.map((row) => row.map((text) => folded(text, 60))), hovertemplate: "%{customdata}<extra></extra>",
    hoverongaps: false,
  }));
  for (const bad of [false, true]) {
    const words = panel.words.filter((word) => word.bad === bad);
    if (!words.length) continue;
    traces.push({
      type: "scatter", mode: "text", x: words.map((word) => word.x), y: words.map((word) => word.y),
      text: words.map((word) => short(word.text, 28)), textfont: { color: css(bad ? "--warn" : "--soft"), size: 12 },
      customdata: words.map((word) => folded(word.hover, 60)), hovertemplate: "%{customdata}<extra></extra>",
    });
  }
  const end = panel.ticks.length ? panel.ticks.at(-1)[0] : 0;
  const ticks = data.scale ? data.scale.ticks : [];
  return {
    data: traces,
    layout: {
      showlegend: false, hovermode: "closest",
      xaxis: {
        side: "top", showgrid: false, range: [-0.55, end + 0.55], tickvals: panel.ticks.map((tick) => tick[0]),
        ticktext: panel.ticks.map(([, name, clean]) => (clean ? `${short(name, 14)}<br><i>no attack</i>` : short(name, 14))),
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

if (data.ranks) table("ranks", data.ranks);
table("worst", data.worst);
if (data.troubles) table("troubles", data.troubles);

table("cells", data.cells, {
  [data.cells.columns.length - 1]: (links) => make("span", {}, ...links.flatMap(([seed, href], i) => [
    ...(i ? [" "] : []), make("a", { href, textContent: seed, title: `report of seed ${seed}` }),
  ])),
});
