// One stage close up: its maps, its filters, what a unit likes best, and how one value came about.

import { $, ask, busy, compact, el, emit, on, picture, replace, short, sized, state, title } from "/dom.js";

let maps = null, at = null, waiting = null, filterPage = 0;
const stage = () => state.model.stages[state.stage];

function facts(row) {
  const field = row.field ? row.field.map((axis) => axis.size).join(" × ") + " pixels" : "the whole image";
  const rows = [["Output", sized(row.shape)], ["Parameters", row.params ? row.params.toLocaleString("en") : "none"],
    ["MACs", row.macs ? compact(row.macs) : "none"], ["Receptive field", field]];
  if (row.rule) rows.push(["Output size", row.rule]);
  return rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
}

const MEANINGS = {
  "convolution": "Slides each filter over the maps before; every output is a sum of products.",
  "ReLU": "Sets negative values to zero: max(0, x).",
  "max pooling": "Keeps the largest value of each window.",
  "average pooling": "Takes the mean of each window.",
  "global average pooling": "The mean of each map: one number a channel.",
  "normalization": "Shifts and scales each channel by its statistics, then by what was learned.",
  "addition": "Adds maps place by place: a shortcut and what a block computed.",
  "concatenation": "Stacks maps along the channels.",
  "dense layer": "Every output is a weighted sum of all inputs.",
  "flattening": "Writes all maps into one vector.",
  "scaling": "Multiplies each channel by a gate.",
  "response normalization": "Divides each value by its neighbours across channels.",
};

function grid(found) {
  const names = state.stage === state.model.stages.length - 1 ? state.model.classes : null;
  if (found.values) {
    const limit = Math.max(1e-9, Math.abs(found.low), Math.abs(found.high));
    return found.values.map((value, i) => {
      const unit = found.first + i, name = names?.[unit] ?? `${unit}`, bar = el("i", { className: value < 0 ? "minus" : "plus" });
      bar.style.width = `${Math.min(50, (50 * Math.abs(value)) / limit)}%`;
      return el("button", { className: "value", onclick: () => pick(unit) },
        el("span", { title: name }, name), el("span", { className: "axis" }, bar), el("span", {}, short(value)));
    });
  }
  return found.maps.map((address, i) => el("button", {
    className: "tile", title: `unit ${found.first + i}`, onclick: () => pick(found.first + i),
  }, picture(address, `map of unit ${found.first + i}`)));
}

function pager(root, first, shown, total, turn) {
  const size = 64, last = Math.ceil(total / size) - 1, page = Math.floor(first / size);
  if (last < 1) return replace(root);
  const button = (text, to, name) => {
    const made = el("button", { onclick: () => turn(to), disabled: to < 0 || to > last }, text);
    made.setAttribute("aria-label", name);
    return made;
  };
  replace(root, button("‹", page - 1, "page before"),
    el("span", {}, `${first} to ${first + shown - 1} of ${total}`), button("›", page + 1, "next page"));
}

const showMaps = (page = 0) => busy($("mapspanel"), async (fresh) => {
  if (!state.image) return;
  const found = await ask("maps", { id: state.image.id, stage: state.stage, page });
  if (!fresh()) return;
  maps = found;
  const items = grid(found);
  $("maps").className = found.values ? "values" : "grid";
  $("maps").replaceChildren(...items);
  const scale = found.values ? "" : `Colours from ${short(found.low)} to ${short(found.high)}`;
  $("scale").textContent = scale;
  pager($("mappages"), found.first, items.length, found.shape.at(-1), showMaps);
  if (state.unit < found.first || state.unit >= found.first + items.length) {
    state.unit = found.first;
    showFilters();
    showBest();
  }
  mark();
  close();
});

function mark() {
  [...$("maps").children].forEach((item, i) => item.setAttribute("aria-pressed", maps.first + i === state.unit));
  $("unitname").textContent = `Unit ${state.unit}`;
}

function pick(unit) {
  state.unit = unit;
  mark();
  close();
  showFilters();
  showBest();
}

// The chosen map large, with a place to point at.
function close() {
  const flat = Boolean(maps.values), image = flat ? null : maps.maps[state.unit - maps.first];
  $("bigmap").hidden = flat;
  $("large").src = flat ? "" : image;
  $("source").src = state.image.image;
  const [height, width] = flat ? [1, 1] : maps.shape;
  at = { row: Math.min(at?.row ?? height >> 1, height - 1), column: Math.min(at?.column ?? width >> 1, width - 1) };
  point(at.row, at.column, true);
}

function box(mark, top, left, height, width, shape) {
  mark.style.top = `${(100 * top) / shape[0]}%`;
  mark.style.left = `${(100 * left) / shape[1]}%`;
  mark.style.height = `${(100 * height) / shape[0]}%`;
  mark.style.width = `${(100 * width) / shape[1]}%`;
}

function point(row, column, now = false) {
  at = { row, column };
  if (!maps.values) box($("cell"), row, column, 1, 1, maps.shape);
  const [height, width] = state.model.input, field = stage().field;
  const [first, second] = (field ?? []).map((axis, i) => {
    const low = axis.low + axis.step * (i ? column : row), most = i ? width : height;
    return [Math.max(0, low), Math.min(most, low + axis.size)];
  });
  const [[top, bottom], [left, right]] = field ? [first, second] : [[0, height], [0, width]];
  box($("field"), top, left, bottom - top, right - left, [height, width]);
  clearTimeout(waiting);
  waiting = setTimeout(explain, now ? 0 : 60);
}

const explain = () => busy($("windowpanel"), async (fresh) => {
  const place = { row: at.row, column: at.column };
  const found = await ask("window", { id: state.image.id, stage: state.stage, unit: state.unit, ...place });
  if (fresh()) $("products").replaceChildren(...told(found));
});

const brief = (value) => (value === null ? "·" : `${+value.toFixed(2)}`.replace("-", "−"));

function matrix(rows, words) {
  const limit = Math.max(1e-9, ...rows.flat().map((value) => Math.abs(value ?? 0)));
  const table = el("table", { className: "matrix" }, ...rows.map((row) => el("tr", {}, ...row.map((value) => {
    const cell = el("td", { title: short(value) }, brief(value));
    if (value === null) cell.className = "outside";
    else shade(cell, value, limit);
    return cell;
  }))));
  return el("figure", {}, table, el("figcaption", {}, words));
}

export function shade(cell, value, limit) {
  const share = Math.round(Math.min(1, Math.abs(value) / limit) * 60);
  const color = value >= 0 ? "var(--plus)" : "var(--minus)";
  cell.style.background = `color-mix(in srgb, ${color} ${share}%, transparent)`;
}

function told(found) {
  const output = el("b", {}, short(found.output)), row = stage();
  if (found.terms?.[0]?.weights !== undefined) return convolved(found, output);
  if (found.terms) {
    const values = found.terms[0].values.flat().filter((value) => value !== null);
    const name = row.kind.startsWith("max") ? "max" : row.kind.startsWith("min") ? "min" : "mean";
    return [matrix(found.terms[0].values, `window of map ${found.terms[0].channel}`),
      el("p", { className: "formula" }, `y = ${name} of ${values.length} values = `, output)];
  }
  if (!found.inputs) return [el("p", { className: "formula" }, "y = ", output)];
  const given = found.inputs.map(short), joined = { addition: " + ", scaling: " × " }[row.kind];
  const text = row.kind === "ReLU" ? `max(0, ${given[0]})` : joined ? given.join(joined) : `f(${given.join(", ")})`;
  return [el("p", { className: "formula" }, `y = ${text} = `, output)];
}

function convolved(found, output) {
  const terms = found.terms.map((term) => {
    const products = term.values?.map((row, i) => row.map((value, j) => (value ?? 0) * term.weights[i][j]));
    return el("div", { className: "term" },
      ...(term.values ? [matrix(term.values, `input ${term.channel}`), el("span", {}, "×"),
        matrix(term.weights, "weights"), el("span", {}, "="), matrix(products, "products"), el("span", {}, "Σ")]
        : [el("span", {}, `input ${term.channel}`)]),
      el("b", {}, short(term.sum)));
  });
  const others = found.channels - found.terms.length;
  const sum = found.terms.map((term) => short(term.sum)).join(" + ").replaceAll("+ −", "− ");
  const rest = others > 0 ? ` + ${short(found.rest)} (${others} other inputs)` : "";
  const [words, bias] = found.bias === null ? ["", ""] : [" + bias", ` + ${short(found.bias)}`];
  return [el("p", { className: "formula" }, `y = Σ window × weights${words} = `,
    `${sum}${rest}${bias} = `.replaceAll("+ −", "− "), output), ...terms];
}

const showFilters = () => busy($("filterspanel"), async (fresh) => {
  $("filterspanel").hidden = !stage().filters;
  if (!stage().filters) return;
  const found = await ask("filters", { stage: state.stage, unit: state.unit, page: filterPage });
  if (!fresh()) return;
  const all = found.of === "all", [height, width, channels, count] = found.size;
  $("filtersof").textContent = all ? `All ${count} filters of ${height} × ${width} × ${channels}`
    : `Filter of unit ${state.unit}: ${height} × ${width} weights for each of ${channels} inputs`;
  replace($("filters"), ...found.filters.map((address, i) => {
    const number = found.number + i, name = `${all ? "unit" : "input"} ${number}`;
    const made = el(all ? "button" : "span", { className: "tile", title: name }, picture(address, name));
    if (all) { made.onclick = () => pick(number); made.setAttribute("aria-pressed", number === state.unit); }
    return made;
  }));
  pager($("filterpages"), found.first, found.filters.length, found.total, (to) => { filterPage = to; showFilters(); });
});

const showBest = () => busy($("bestpanel"), async (fresh) => {
  const found = await ask("unit", { stage: state.stage, unit: state.unit });
  if (!fresh()) return;
  const [height, width] = state.model.input;
  $("bestof").textContent = `Strongest for unit ${state.unit} among ${found.among} images of ${found.data}`;
  $("best").replaceChildren(...found.patches.map((row) => {
    const frame = el("i", {}), [top, left, bottom, right] = row.box;
    box(frame, top, left, bottom - top, right - left, [height, width]);
    return el("figure", {}, el("div", { className: "pair" }, picture(row.patch, "the patch"),
      el("span", { className: "boxed" }, picture(row.image, row.class), frame)),
    el("figcaption", {}, el("bdi", {}, row.class), " ", el("b", {}, short(row.value))));
  }));
});

function open() {
  const row = stage();
  $("stagename").textContent = title(row);
  $("stageplace").textContent = row.module;
  $("meaning").textContent = MEANINGS[row.kind] ?? "";
  $("facts").replaceChildren(...facts(row));
  filterPage = 0;
  at = null;
  showMaps(Math.floor(state.unit / 64));
  showFilters();
  showBest();
}

export function start() {
  on("stage", () => { if (state.image) open(); });
  on("image", () => { if ($("stagename").textContent) showMaps(Math.floor(state.unit / 64)); else open(); });
  const big = $("bigmap");
  const follow = (event) => {
    const area = $("large").getBoundingClientRect();
    const row = Math.floor(((event.clientY - area.top) / area.height) * maps.shape[0]);
    const column = Math.floor(((event.clientX - area.left) / area.width) * maps.shape[1]);
    if (row < 0 || column < 0 || row >= maps.shape[0] || column >= maps.shape[1]) return;
    if (row !== at.row || column !== at.column) point(row, column);
  };
  big.addEventListener("pointermove", follow);
  big.addEventListener("pointerdown", follow);
  big.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key] ?? [];
    if (down === undefined) return;
    event.preventDefault();
    const inside = (value, most) => Math.min(most - 1, Math.max(0, value));
    point(inside(at.row + down, maps.shape[0]), inside(at.column + right, maps.shape[1]));
  });
}
