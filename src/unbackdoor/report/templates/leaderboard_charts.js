// The charts of a leaderboard. Vega gets numbers alone: methods and attacks are numbered, and the tip and the legend
// put the words beside them.
"use strict";

// Seven colors (--series-0 and on in the style sheet) and six shapes: 42 methods can be told apart.
const COLORS = 7;
const SHAPES = [
  "M-.9,0A.9,.9,0,1,0,.9,0A.9,.9,0,1,0,-.9,0Z",
  "M-.8,-.8H.8V.8H-.8Z",
  "M0,-1.1L.9,0L0,1.1L-.9,0Z",
  "M0,-1L1,.8H-1Z",
  "M-1,-.8H1L0,1Z",
  "M-.3,-1H.3V-.3H1V.3H.3V1H-.3V.3H-1V-.3H-.3Z",
];

const CHART_STYLE = {
  aria: false, background: null, font: "system-ui, sans-serif", view: { stroke: null },
  axis: {
    labelColor: "var(--muted)", titleColor: "var(--ink)", gridColor: "var(--line)", tickColor: "var(--line)",
    domainColor: "var(--bar)", labelFontSize: 12, titleFontSize: 13, titleFontWeight: "normal", labelOverlap: true,
  },
};

const tip = document.createElement("div");
const views = {};

// `asrPlace`, `accPlace`: where ASR and ACC stand among the figures of an attack.
function scatterChart(rows, asrPlace, accPlace) {
  const points = rows.flatMap(({ method, attacks }) => attacks.flatMap((figures, attack) => {
    const [asr, acc] = [asrPlace, accPlace].map(place => valueIn(figures?.[place] ?? null));
    if (asr === null || acc === null) return [];
    return [{ method, x: asr, y: acc, lines: [board.attacks[attack], `ASR ${share(asr)} %, ACC ${share(acc)} %`] }];
  }));
  const x = { title: "ASR", scale: { domain: [0, 1] }, axis: { format: "~%" } };
  const label = `Scatter plot of accuracy over attack success rate, ${points.length} points.`;
  return { points, x, y: { title: "ACC" }, marks: ["point"], label, table: "The table by attack has its figures." };
}

function curveChart(curves, axis, [title, figure], metric) {
  const name = title.replace(" (%)", ""), unit = figure === "share" ? " %" : "";
  // A method may have several lines, of settings with other points each.
  const points = curves.flatMap(({ method, settings, points }, line) => points.flatMap(([x, ...figures]) => {
    const y = figures[metric];
    const lines = [`${axis} ${x}`, `${name} ${FIGURES[figure](y)}${unit}`, `settings: ${settings}`];
    return y === null ? [] : [{ method, line, x, y, lines }];
  }));
  const values = positions(curves);
  // Such axes go up by factors, not by steps.
  const scale = values[0] > 0 && values.at(-1) >= 10 * values[0] ? { type: "log" } : { type: "linear", zero: false };
  const x = {
    title: axis,
    scale: { ...scale, nice: false, padding: 12 },
    axis: { values, format: axis === "poison rate" ? "~%" : "d" },
  };
  const count = new Set(curves.map(({ method }) => method)).size;
  const label = `Line chart of ${name} over ${axis}, ${count} methods.`;
  const table = "The table below has its figures.";
  const y = { title: name, axis: { format: figure === "share" ? "~%" : "~g" } };
  return { points, x, y, marks: ["line", "point"], label, table };
}

function specification({ points, x, y, marks }) {
  const numbers = board.methods.map((_, n) => n);
  const look = range => ({ field: "method", type: "nominal", legend: null, scale: { domain: numbers, range } });
  const layers = {
    line: {
      mark: { type: "line", strokeWidth: 1.5 },
      encoding: { detail: { field: "line", type: "nominal" } },
    },
    point: {
      mark: { type: "point", filled: true, size: 70, opacity: 0.85, tooltip: { content: "data" } },
      encoding: { shape: look(numbers.map(shapeOf)) },
    },
  };
  return {
    width: "container", height: 320, autosize: { type: "fit", contains: "padding" },
    data: { values: points.map(({ method, line = 0, x, y }, n) => ({ n, method, line, x, y })) },
    encoding: {
      x: { field: "x", type: "quantitative", ...x },
      y: { field: "y", type: "quantitative", scale: { zero: false }, axis: { format: "~%" }, ...y },
      color: look(numbers.map(colorOf)),
    },
    layer: marks.map(mark => layers[mark]),
    config: CHART_STYLE,
  };
}

async function drawChart(id, chart) {
  views[id]?.finalize(); // or it would go on listening to the window
  const holder = document.getElementById(`${id}-chart`);
  holder.setAttribute("aria-label", `${chart.label} ${chart.table}`);
  drawLegend(document.getElementById(`${id}-legend`), chart.points.map(({ method }) => method));
  // Vega gives its element a role and a name of its own.
  views[id] = await vegaEmbed(holder.firstElementChild, specification(chart), {
    // With `ast`, expressions are interpreted: the page's policy forbids `eval`.
    mode: "vega-lite", ast: true, actions: false, defaultStyle: false, renderer: "svg",
    tooltip: (_, event, __, datum) => showTip(event, datum && chart.points[datum.n]),
  });
}

function showFailure(id, { table }, error) {
  console.error(error);
  delete views[id];
  const holder = document.getElementById(`${id}-chart`), text = `This chart could not be drawn. ${table}`;
  holder.setAttribute("aria-label", text);
  holder.firstElementChild.replaceChildren(text);
  drawLegend(document.getElementById(`${id}-legend`), []);
}

function showTip(event, point) {
  tip.hidden = !point;
  if (!point) return;
  tip.textContent = [board.methods[point.method], ...point.lines].join("\n");
  tip.style.left = `${Math.max(0, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(0, event.clientY - tip.offsetHeight - 12)}px`;
}

function drawLegend(list, methods) {
  list.replaceChildren(...[...new Set(methods)].map(n => make("li", {}, symbol(n), board.methods[n])));
}

function symbol(n) {
  const [drawing, path] = ["svg", "path"].map(tag => document.createElementNS("http://www.w3.org/2000/svg", tag));
  drawing.setAttribute("viewBox", "-1.2 -1.2 2.4 2.4");
  drawing.setAttribute("aria-hidden", "true");
  path.setAttribute("d", shapeOf(n));
  path.setAttribute("fill", colorOf(n));
  drawing.append(path);
  return drawing;
}

function colorOf(n) {
  return `var(--series-${n % COLORS})`;
}

function shapeOf(n) {
  return SHAPES[n % SHAPES.length];
}
