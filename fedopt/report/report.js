"use strict";
// The pictures of one run.

const progress = [];
for (const id of ["accuracy", "loss", "recall"]) {
  if (data[id]) progress.push(draw(id, () => curves(data[id])));
}
if (data.info) {
  const select = document.getElementById("info-choice");
  data.info.traces.forEach((t, i) => select.append(make("option", { value: i, textContent: t.name })));
  const again = draw("info", () => curves({ share: false, traces: [data.info.traces[select.value]] }));
  select.addEventListener("change", again);
  progress.push(again);
}
const refresh = () => progress.forEach((again) => again());
axisChoice("axis", refresh);
const log = document.getElementById("log");
if (log) log.addEventListener("change", () => { chosen.log = log.checked; refresh(); });

function scale() {
  return [[0, css("--low")], [1, css("--accent")]];
}

if (data.recalls) {
  draw("recalls", () => ({
    data: [{
      type: "heatmap", x: data.recalls.rounds, y: data.recalls.classes.map((c) => short(c, 16)), z: data.recalls.values,
      zmin: 0, zmax: 1, colorscale: scale(), colorbar: { thickness: 10, outlinewidth: 0, tickformat: ".0%" },
      hovertemplate: "%{y}, round %{x}: %{z:.1%}<extra></extra>", hoverongaps: false,
    }],
    layout: {
      hovermode: "closest", xaxis: { title: { text: "round", standoff: 8 }, tickformat: ",~f", showgrid: false },
      yaxis: { type: "category", autorange: "reversed", showgrid: false },
    },
  }));
}

if (data.phases) {
  draw("phases", () => ({
    data: data.phases.names.map((name, i) => ({
      x: data.phases.rounds, y: data.phases.values[i], name: plain(name), mode: "lines", stackgroup: "all",
      line: { width: 1, color: colour(i) }, fillcolor: fade(colour(i), 0.55), hovertemplate: "%{y:.3~s}s",
    })),
    layout: {
      xaxis: { title: { text: "round", standoff: 8 }, tickformat: ",~f" }, yaxis: { tickformat: "~s", ticksuffix: "s", rangemode: "tozero" },
    },
  }));
}

if (data.traffic) {
  draw("traffic", () => ({
    data: [["up", "clients to server"], ["down", "server to clients"]].map(([key, name], i) => ({
      x: data.traffic.rounds, y: data.traffic[key], name, mode: "lines", hovertemplate: "%{y:.4s}B",
      line: { width: 2, color: colour(i), dash: DASHES[i] },
    })),
    layout: {
      xaxis: { title: { text: "round", standoff: 8 }, tickformat: ",~f" }, yaxis: { tickformat: "~s", ticksuffix: "B", rangemode: "tozero" },
    },
  }));
}

function names(list) {
  return list.map((name) => short(name, 24));
}

function attackers(x, y) {
  return {
    x, y, mode: "markers", name: "attacker", type: "scatter", hoverinfo: "skip",
    marker: { symbol: "x", size: 8, color: css("--warn"), line: { width: 0 } },
  };
}

const held = data.partition;
if (held) {
  const at = held.names.map((_, i) => i);
  const labels = names(held.names);
  const ticks = at.length <= 40
    ? { tickvals: at, ticktext: held.names.map((n) => short(n, 12)), tickangle: at.length > 12 ? -45 : 0 }
    : { showticklabels: held.every, title: { text: held.every ? "client" : "clients, by number of samples", standoff: 8 } };
  const bad = at.filter((i) => held.attackers[i]);
  draw("partition", () => {
    if (held.bars) {
      const top = Math.max(1, ...held.sizes);
      return {
        data: [
          ...held.values.map((row, i) => ({
            type: "bar", x: at, y: row, customdata: labels, name: short(held.classes[i], 20),
            marker: { color: colour(i), line: { width: 0 } },
            hovertemplate: `%{customdata}: %{y:,} × ${short(held.classes[i], 20)}<extra></extra>`,
          })),
          ...(bad.length ? [attackers(bad, bad.map((i) => held.sizes[i] + 0.04 * top))] : []),
        ],
        layout: {
          barmode: "stack", hovermode: "closest", bargap: 0.18, showlegend: true,
          xaxis: { ...ticks, showgrid: false }, yaxis: { title: { text: "samples", standoff: 6 } },
        },
      };
    }
    return {
      data: [
        {
          type: "heatmap", x: at, y: held.classes.map((_, i) => i), z: held.values, colorscale: scale(), zmin: 0,
          customdata: held.values.map(() => labels), text: held.classes.map((c) => at.map(() => short(c, 20))),
          colorbar: { thickness: 10, outlinewidth: 0, title: { text: "samples", side: "right" } },
          hovertemplate: "%{customdata}: %{z:,} × %{text}<extra></extra>",
        },
        ...(bad.length ? [attackers(bad, bad.map(() => -0.8))] : []),
      ],
      layout: {
        hovermode: "closest", showlegend: bad.length > 0, xaxis: { ...ticks, showgrid: false },
        yaxis: {
          showgrid: false, range: [held.classes.length - 0.5, bad.length ? -1.1 : -0.5], title: { text: "class", standoff: 6 },
          ...(held.classes.length <= 30 ? { tickvals: held.classes.map((_, i) => i), ticktext: held.classes.map((c) => short(c, 14)) } : {}),
        },
      },
    };
  });
}

// found.clients[i] clients have the whole number found.values[i], which increase with i
function histogram(id, found, title) {
  const low = found.values[0], high = found.values.at(-1);
  const xbins = { start: low - 0.5, end: high + 0.5, size: Math.ceil((high - low + 1) / 40) };
  draw(id, () => ({
    data: [{
      type: "histogram", histfunc: "sum", x: found.values, y: found.clients, xbins, marker: { color: colour(0) },
      hovertemplate: "%{x}: %{y:,} clients<extra></extra>",
    }],
    layout: {
      showlegend: false, bargap: 0.05, hovermode: "closest",
      xaxis: { title: { text: title, standoff: 8 }, showgrid: false }, yaxis: { title: { text: "clients", standoff: 6 } },
    },
  }));
}

if (data.sizes) histogram("sizes", data.sizes, "samples per client");
if (data.times) histogram("participation", data.times, "accepted answers per client");

const part = data.participation;
if (part) {
  draw("participation", () => ({
    data: [
      {
        type: "heatmap", x: part.rounds, y: part.clients, z: part.values, colorscale: scale(), zmin: 0, zmax: part.most || 1,
        customdata: part.values.map((row, i) => row.map(() => short(part.names[i], 24))), xgap: part.rounds.length > 60 ? 0 : 1,
        ygap: part.clients.length > 60 ? 0 : 1, showscale: part.most > 1 || part.span > 1,
        colorbar: { thickness: 10, outlinewidth: 0, title: { text: "accepted answers per round", side: "right" } },
        hovertemplate: `%{customdata}, round %{x}: %{z:.2~f} accepted per round<extra></extra>`,
      },
      ...(part.rejected.x.length ? [{
        x: part.rejected.x, y: part.rejected.y, mode: "markers", name: "rejected", hoverinfo: "skip",
        marker: { symbol: "x", size: 6, color: css("--warn") },
      }] : []),
    ],
    layout: {
      hovermode: "closest", showlegend: part.rejected.x.length > 0,
      xaxis: { title: { text: part.span > 1 ? `round (cells of ${part.span} rounds)` : "round", standoff: 8 }, tickformat: ",~f", showgrid: false },
      yaxis: {
        autorange: "reversed", showgrid: false, title: { text: "client", standoff: 6 },
        ...(part.clients.length <= 25 ? { tickvals: part.clients, ticktext: part.names.map((n) => short(n, 14)) } : {}),
      },
    },
  }));
}

if (data.clients) table("clients", data.clients);
if (data.rejections) table("rejections", data.rejections);
