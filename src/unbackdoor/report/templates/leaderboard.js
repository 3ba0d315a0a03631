// The page of a leaderboard: looks up what the filters choose, sorts it and shows it. All figures were computed
// before, and strangers' text goes into the page as text nodes only.
"use strict";

const PAGE = 50; // cells
const LONG = 40; // letters from which on a column of cells breaks its lines
const METRICS = ["DER", "ASR", "ACC", "RA"]; // in the order of packing.py
// Sections of curves: the kind of methods and the axis.
const CURVES = {
  rates: ["methods", "poison rate"], samples: ["methods", "clean samples"],
  "trainers-rates": ["trainers", "poison rate"], "sifters-rates": ["sifters", "poison rate"],
};
// Sections of scatter plots: the rows, and where ASR and ACC stand among their figures of an attack.
const SCATTERS = { scatter: ["rows", 1, 2], "trainers-scatter": ["trainers", 2, 1] };

const byId = id => document.getElementById(id);
const board = JSON.parse(byId("board").textContent);
const state = { filters: [], metrics: {}, sorts: {}, search: "", page: 0 };
const collator = new Intl.Collator("en", { numeric: true });

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Figures for people; a column of cells may hold words among its numbers.

const plain = value => value === null ? "–" : String(value);
const fixed = (digits, factor) => value => typeof value === "number" ? (factor * value).toFixed(digits) : plain(value);
const share = fixed(2, 100);
const FIGURES = { plain, share, whole: fixed(0, 1), rank: fixed(2, 1), error: fixed(5, 1) };

// An estimate is a value alone, or a value and the ends of its interval.

const valueIn = found => [found].flat()[0];

function estimate(found, figure) {
  const [value, ...ends] = [found].flat();
  if (!ends.length) return [figure(value)];
  return [figure(value), " ", make("span", { className: "ends" }, `[${ends.map(figure).join(", ")}]`)];
}

function ratio(part, total) {
  return total === 0 ? "–" : `${part} of ${total} (${share(part / total)} %)`;
}

// Columns: what a row is sorted by, what its cell shows, and whether the best end, which comes first, is the high one.

function column(title, value, options = {}) {
  const figure = FIGURES[options.figure ?? "plain"];
  return { title, value, cell: row => [figure(value(row))], high: false, kind: "number", ...options };
}

const GPU_MEMORY = "GPU memory (MB)";
const NAME = column("Method", row => board.methods[row.method], { kind: "name" });

const RANKING = [
  NAME,
  column("Rank", row => valueIn(row.rank), { cell: rankCell }),
  metricColumn("DER (%)", row => row.der, "DER"),
  metricColumn("ACC (%)", row => row.acc, "ACC"),
  metricColumn("ASR (%)", row => row.asr, "ASR"),
  metricColumn("RA (%)", row => row.ra, "RA"),
  column("Time (s)", row => row.seconds, { figure: "whole" }),
  column("Memory (MB)", row => row.memory, { figure: "whole" }),
  column(GPU_MEMORY, row => row.gpu, { figure: "whole" }),
  column("Blocks", row => row.blocks, { cell: row => [`${row.blocks} of ${row.all}`], high: true }),
];

const SCANNERS = [
  NAME,
  ratioColumn("Backdoors found", row => row.flagged, row => row.backdoored, true),
  ratioColumn("Target first", row => row.first, row => row.targeted, true),
  ratioColumn("False alarms", row => row.alarms, row => row.clean, false),
  column("Inconclusive", row => row.inconclusive),
  column("Time (s)", row => row.seconds, { figure: "whole" }),
  column("Memory (MB)", row => row.memory, { figure: "whole" }),
  column(GPU_MEMORY, row => row.gpu, { figure: "whole" }),
];

// Kinds that are judged by figures of their own, which stand in the order of packing.py. Title, figure, high is best.
const KINDS = {
  trainers: [
    ["DER (%)", "share", true], ["ACC (%)", "share", true], ["ASR (%)", "share", false], ["RA (%)", "share", true],
    ["MSE, clean", "error", false], ["MSE, triggered", "error", false],
  ],
  sifters: [
    ["AUROC (%)", "share", true], ["TPR at FPR 1 % (%)", "share", true], ["TPR (%)", "share", true],
    ["FPR (%)", "share", false], ["False alarms (%)", "share", false],
  ],
};

// The figures of a kind in the order of its rows: title, figure, high is best.
const FIGURES_OF = { methods: METRICS.map(title => [title, "share", title !== "ASR"]), ...KINDS };

// The figures among which the reader of a table or chart chooses.
const CHOICES = {
  attacks: METRICS, rates: METRICS, samples: METRICS,
  trainers: KINDS.trainers.map(([title]) => title),
  sifters: KINDS.sifters.map(([title]) => title).slice(0, -1), // false alarms are of no attack
  "trainers-rates": KINDS.trainers.map(([title]) => title),
  "sifters-rates": KINDS.sifters.map(([title]) => title).slice(0, -1),
};

const CELLS = board.columns.map(([title, figure], place) => {
  const long = board.cells.some(row => String(row[place]).length > LONG);
  const kind = figure !== "plain" ? "number" : long ? "words" : "word";
  return column(figure === "share" ? `${title} (%)` : title, row => row[place], { figure, kind });
});

function kindColumns(id) {
  return [
    NAME,
    column("Rank", row => valueIn(row.rank), { cell: placeCell }),
    ...KINDS[id].map(([title, ...look], n) => figureColumn(title, row => row.figures[n], ...look)),
    column("Time (s)", row => row.seconds, { figure: "whole" }),
    column("Memory (MB)", row => row.memory, { figure: "whole" }),
    column(GPU_MEMORY, row => row.gpu, { figure: "whole" }),
    column("Blocks", row => row.blocks, { cell: row => [`${row.blocks} of ${row.all}`], high: true }),
  ];
}

function figureColumn(title, found, figure, high) {
  const cell = row => estimate(found(row), FIGURES[figure]);
  return column(title, row => valueIn(found(row)), { cell, high });
}

function kindAttackColumns(id, rows, chosen) {
  const [, figure, high] = KINDS[id][chosen];
  const measured = [...board.attacks.keys()].filter(attack => rows.some(row => row.attacks[attack]));
  const found = attack => row => row.attacks[attack] ? row.attacks[attack][chosen] : null;
  return [NAME, ...measured.map(attack => figureColumn(board.attacks[attack], found(attack), figure, high))];
}

function placeCell(row) {
  return row.rank === null && row.complete ? ["–"] : rankCell(row);
}

function rankCell(row) {
  if (row.rank === null) return ["– ", make("span", { className: "ends" }, "incomplete")];
  return estimate(row.rank, FIGURES.rank);
}

function ratioColumn(title, part, total, high) {
  const value = row => total(row) === 0 ? null : part(row) / total(row);
  return column(title, value, { cell: row => [ratio(part(row), total(row))], high });
}

function metricColumn(title, found, metric) {
  const cell = row => estimate(found(row), share);
  return column(title, row => valueIn(found(row)), { cell, high: metric !== "ASR" });
}

function attackColumns(rows, metric) {
  const measured = [...board.attacks.keys()].filter(attack => rows.some(row => row.attacks[attack]));
  const figure = attack => row => row.attacks[attack] ? row.attacks[attack][metric] : null;
  const columns = measured.map(attack => metricColumn(board.attacks[attack], figure(attack), METRICS[metric]));
  return [NAME, metricColumn("Mean", row => row.means[metric], METRICS[metric]), ...columns];
}

function curveColumns(id, curves, chosen) {
  const [, figure, high] = FIGURES_OF[CURVES[id][0]][chosen];
  const found = x => row => row.points.find(point => point[0] === x)?.[chosen + 1] ?? null;
  return [
    NAME,
    column("Settings", row => row.settings, { high: true }),
    ...positions(curves).map(x => figureColumn(String(x), found(x), figure, high)),
  ];
}

function scannerAttackColumns(rows) {
  const measured = [...board.attacks.keys()].filter(attack => rows.some(row => row.attacks[attack]));
  const part = (attack, n) => row => row.attacks[attack]?.[n] ?? 0;
  return [NAME, ...measured.map(attack => ratioColumn(board.attacks[attack], part(attack, 0), part(attack, 1), true))];
}

// What no method has is no column.
function had(columns, rows, title) {
  return columns.filter(found => found.title !== title || rows.some(row => found.value(row) !== null));
}

function positions(curves) {
  return [...new Set(curves.flatMap(curve => curve.points.map(point => point[0])))].sort((a, b) => a - b);
}

// Tables.

function compare(left, right, sign = 1) {
  // What has no figure comes last in either direction.
  if (left === null || right === null) return (left === null) - (right === null);
  return sign * (typeof left === "number" && typeof right === "number" ? left - right : collator.compare(left, right));
}

function sortOf(id) {
  return state.sorts[id] ?? { title: id === "ranking" || id in KINDS ? "Rank" : "", down: false };
}

function sorted(id, columns, rows) {
  const { title, down } = sortOf(id);
  const value = columns.find(found => found.title === title)?.value ?? (() => 0);
  // Methods that lack blocks stay below the others: their figures cannot be compared.
  const below = row => "complete" in row ? !row.complete : row.rank === null;
  return [...rows].sort((a, b) => below(a) - below(b) || compare(value(a), value(b), down ? -1 : 1));
}

function sortBy(id, { title, high }) {
  const now = sortOf(id);
  state.sorts[id] = { title, down: now.title === title ? !now.down : high };
  if (id === "cells") state.page = 0;
  show();
}

function fill(id, columns, rows) {
  const table = byId(id), head = table.tHead.rows[0];
  // A head that is the same stays, so that the button that was pressed keeps the focus.
  const [before, after] = [[...head.cells].map(cell => cell.textContent), columns.map(found => found.title)];
  if (JSON.stringify(before) !== JSON.stringify(after)) head.replaceChildren(...columns.map(headCell));
  columns.forEach((found, n) => head.cells[n].firstChild.onclick = () => sortBy(id, found));
  const { title, down } = sortOf(id), place = columns.findIndex(found => found.title === title);
  for (const cell of head.cells) cell.removeAttribute("aria-sort");
  head.cells[place]?.setAttribute("aria-sort", down ? "descending" : "ascending");
  table.tBodies[0].replaceChildren(...rows.map(row => make("tr", {}, ...columns.map(found => bodyCell(found, row)))));
}

function headCell({ title, kind }) {
  return make("th", { scope: "col", className: kind }, make("button", { type: "button" }, title));
}

function bodyCell({ cell, kind }, row) {
  const properties = kind === "name" ? { scope: "row" } : { className: kind };
  return make(kind === "name" ? "th" : "td", properties, ...cell(row));
}

// What the filters choose.

function selection() {
  const [blocks, rows, scanners, curves, trainers, sifters] = board.selections[state.filters.join(",")]
    ?? [0, [], [], [], [], []];
  return {
    blocks,
    rows: rows.map(([method, count, der, rank, acc, asr, ra, seconds, memory, means, attacks, gpu]) => (
      { method, blocks: count, all: blocks, der, rank, acc, asr, ra, seconds, memory, gpu, means, attacks }
    )).sort((a, b) => compare(valueIn(a.rank), valueIn(b.rank))),
    scanners: scanners.map(scanner),
    curves: curves.map(([kind, axis, method, settings, points]) => ({ kind, axis, method, settings, points }))
      .filter(({ points }) => points.length > 1),
    trainers: trainers.map(standing),
    sifters: sifters.map(standing),
  };
}

function standing([method, blocks, all, complete, rank, seconds, memory, figures, attacks, gpu]) {
  return { method, blocks, all, complete, rank, seconds, memory, gpu, figures, attacks };
}

function scanner([
  method, backdoored, flagged, targeted, first, clean, alarms, inconclusive, seconds, memory, attacks, gpu,
]) {
  return {
    method, backdoored, flagged, targeted, first, clean, alarms, inconclusive, seconds, memory, gpu, attacks,
  };
}

function chosenCells() {
  const fits = board.filters.map(([, , values, place], n) => {
    const wanted = values[state.filters[n] - 1];
    if (wanted === undefined) return () => true;
    // The numbers of cells are rounded.
    const near = value => Math.abs(value - Number(wanted)) < 1e-6;
    return row => typeof row[place] === "number" ? near(row[place]) : (row[place] ?? "none") === wanted;
  });
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const found = (row, n) => words.every(word => textOf(row, n).includes(word));
  return board.cells.filter((row, n) => fits.every(fit => fit(row)) && found(row, n));
}

const texts = [];

function textOf(row, n) {
  texts[n] ??= CELLS.map(({ cell }) => cell(row)[0]).join("\n").toLowerCase();
  return texts[n];
}

// What is shown.

function show() {
  const chosen = selection();
  showStatus(chosen);
  showMethods(chosen.rows);
  for (const id of Object.keys(CURVES)) showCurves(id, curvesOf(chosen, id));
  showScanners(chosen.scanners);
  for (const id of Object.keys(KINDS)) showKind(id, chosen[id]);
  showCells();
  drawCharts(chosen);
  writeHash();
}

function showStatus({ blocks, rows, scanners, trainers, sifters }) {
  const counts = [
    [rows.length, "methods"], [blocks, "blocks"], [scanners.length, "scanners"],
    [trainers.length, "secure trainers"], [sifters.length, "sifters"],
  ];
  const found = counts.filter(([count]) => count).map(([count, name]) => `${name}: ${count}`).join(", ");
  byId("status").textContent = found || "There are no cells for this choice. Set one of the filters back to all.";
}

function showMethods(rows) {
  const columns = attackColumns(rows, state.metrics.attacks);
  byId("ranking-section").hidden = byId("attacks-section").hidden = !rows.length;
  byId("incomplete").hidden = rows.every(row => row.rank !== null);
  const ranking = had(RANKING, rows, GPU_MEMORY);
  fill("ranking", ranking, sorted("ranking", ranking, rows));
  fill("attacks", columns, sorted("attacks", columns, rows));
}

function showScanners(rows) {
  const columns = had(SCANNERS, rows, GPU_MEMORY), byAttack = scannerAttackColumns(rows);
  byId("scanners-section").hidden = !rows.length;
  byId("scanners-by-attack").hidden = byAttack.length === 1;
  fill("scanners", columns, sorted("scanners", columns, rows));
  fill("scanners-attacks", byAttack, sorted("scanners-attacks", byAttack, rows));
}

function showKind(id, rows) {
  // What no method of the kind has is no column.
  const columns = kindColumns(id).filter(({ title, value }) => title === "Rank" || rows.some(row => value(row) !== null));
  const byAttack = kindAttackColumns(id, rows, state.metrics[id]);
  byId(`${id}-section`).hidden = !rows.length;
  byId(`${id}-incomplete`).hidden = rows.every(row => row.complete);
  fill(id, columns, sorted(id, columns, rows));
  fill(`${id}-attacks`, byAttack, sorted(`${id}-attacks`, byAttack, rows));
}

function showCurves(id, curves) {
  const columns = curveColumns(id, curves, state.metrics[id]);
  byId(`${id}-section`).hidden = !curves.length;
  fill(id, columns, sorted(id, columns, curves));
}

function curvesOf({ curves }, id) {
  const [kind, axis] = CURVES[id];
  return curves.filter(curve => curve.kind === kind && curve.axis === axis);
}

function showCells() {
  const rows = sorted("cells", CELLS, chosenCells());
  const last = Math.max(0, Math.ceil(rows.length / PAGE) - 1);
  state.page = Math.max(0, Math.min(state.page, last));
  const start = state.page * PAGE, shown = rows.slice(start, start + PAGE);
  fill("cells", CELLS, shown);
  byId("range").textContent = shown.length ? `${start + 1} to ${start + shown.length} of ${rows.length}` : "No cells";
  // Not `disabled`, which would take the focus away from a button that was just pressed.
  byId("previous").setAttribute("aria-disabled", state.page === 0);
  byId("next").setAttribute("aria-disabled", state.page === last);
}

let wanted = "", drawing = Promise.resolve();

// One after the other, and of many quick choices only the last: charts are slow next to tables.
function drawCharts(chosen) {
  const now = JSON.stringify([state.filters, state.metrics]);
  if (wanted === now) return;
  wanted = now;
  const charts = {};
  for (const [id, [rows, asr, acc]] of Object.entries(SCATTERS)) {
    charts[id] = scatterChart(chosen[rows], asr, acc);
    byId(`${id}-section`).hidden = !charts[id].points.length;
  }
  for (const [id, [kind, axis]] of Object.entries(CURVES)) {
    charts[id] = curveChart(curvesOf(chosen, id), axis, FIGURES_OF[kind][state.metrics[id]], state.metrics[id]);
  }
  drawing = drawing.then(async () => {
    for (const [id, chart] of Object.entries(charts)) {
      if (wanted !== now || !chart.points.length) continue;
      // Whatever goes wrong with one chart, the others follow.
      await drawChart(id, chart).catch(error => showFailure(id, chart, error));
    }
  });
}

// The state in the address, so that a view can be shared.

function writeHash() {
  const saved = new URLSearchParams();
  board.filters.forEach(([name, , values], n) => {
    if (state.filters[n]) saved.set(`filter.${name}`, values[state.filters[n] - 1]);
  });
  for (const [id, chosen] of Object.entries(state.metrics)) if (chosen) saved.set(`metric.${id}`, CHOICES[id][chosen]);
  for (const [id, { title, down }] of Object.entries(state.sorts)) {
    saved.set(`sort.${id}`, `${down ? "down" : "up"}.${title}`);
  }
  if (state.search) saved.set("search", state.search);
  if (state.page) saved.set("page", state.page + 1);
  history.replaceState(null, "", `#${saved}`);
}

function readHash() {
  const saved = new URLSearchParams(location.hash.slice(1));
  state.filters = board.filters.map(([name, , values]) => values.indexOf(saved.get(`filter.${name}`)) + 1);
  for (const [id, names] of Object.entries(CHOICES)) {
    state.metrics[id] = Math.max(0, names.indexOf(saved.get(`metric.${id}`)));
  }
  state.sorts = {};
  for (const table of document.querySelectorAll("table[id]")) {
    const [, way, title] = /^(up|down)\.(.*)$/.exec(saved.get(`sort.${table.id}`)) ?? [];
    if (way) state.sorts[table.id] = { title, down: way === "down" };
  }
  state.search = saved.get("search") ?? "";
  state.page = Number.parseInt(saved.get("page"), 10) - 1 || 0; // showCells keeps it among the pages that there are
}

// What is made once.

function choice(id, title, values, onchange) {
  const options = values.map(value => make("option", {}, value));
  const select = make("select", { id, onchange: () => onchange(select.selectedIndex) }, ...options);
  return make("div", {}, make("label", { htmlFor: id }, title), select);
}

function makeControls() {
  board.filters.forEach(([, title, values], n) => {
    byId("filters").append(choice(`filter-${n}`, title, ["all", ...values], chosen => {
      state.filters[n] = chosen;
      state.page = 0;
      show();
    }));
  });
  for (const id of Object.keys(state.metrics)) {
    byId(`${id}-controls`).append(choice(`${id}-metric`, "Figure", CHOICES[id], chosen => {
      state.metrics[id] = chosen;
      show();
    }));
  }
  byId("search").oninput = event => {
    state.search = event.target.value;
    state.page = 0;
    show();
  };
  byId("previous").onclick = () => turn(-1);
  byId("next").onclick = () => turn(1);
}

function turn(step) {
  state.page += step;
  showCells();
  writeHash();
}

function setControls() {
  state.filters.forEach((value, n) => byId(`filter-${n}`).selectedIndex = value);
  for (const [id, metric] of Object.entries(state.metrics)) byId(`${id}-metric`).selectedIndex = metric;
  byId("search").value = state.search;
}

// What stands between backticks is code, as in reports.
function prose(text) {
  const parts = text.split("`");
  return parts.length % 2 ? parts.map((part, n) => n % 2 ? make("code", {}, part) : part) : [text];
}

function makeWords() {
  document.title = `${board.title} · unbackdoor`;
  byId("title").textContent = board.title;
  byId("notes").append(...board.notes.map(note => make("li", {}, ...prose(note))));
  byId("facts").append(...board.facts.filter(([, facts]) => facts.length).map(([title, facts]) => make(
    "section", {}, make("h2", {}, title),
    make("table", { className: "facts" }, make("tbody", {}, ...facts.map(factRow))),
  )));
}

function factRow([name, value]) {
  const special = name.toLowerCase() === "command" || /^(sha256:)?[0-9a-f]{32,128}$/i.test(value);
  return make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, special ? make("code", {}, value) : value));
}

function restore() {
  readHash();
  setControls();
  show();
}

makeWords();
readHash();
makeControls();
document.body.append(Object.assign(tip, { className: "tip", hidden: true }));
addEventListener("hashchange", restore);
restore();
