// Operations by hand: a small picture, a filter, ReLU and pooling, with every number to see and to change.

import { $, ask, busy, el, fill, send, short, state } from "/dom.js";
import { shade } from "/inspector.js";

const sheet = { image: [], kernel: [], found: {}, asked: {} }; // what was found, and of which numbers
const number = (id) => Number($(id).value);

// Fills a table with numbers; its cells stay, and with them the focus, while their number is the same.
function draw(id, rows, cell) {
  const limit = Math.max(1e-9, ...rows.flat().map(Math.abs)), table = $(id);
  if (table.rows.length !== rows.length || table.rows[0]?.cells.length !== rows[0]?.length) {
    table.replaceChildren(...rows.map((row) => el("tr", {}, ...row.map(() => el("td")))));
  }
  rows.forEach((row, r) => row.forEach((value, c) => {
    const made = table.rows[r].cells[c];
    shade(made, value, limit);
    cell(made, value, r, c);
  }));
}

const written = (cell, value) => { cell.textContent = `${+value.toFixed(2)}`; };

const compute = () => busy($("play-panel"), async (fresh) => {
  const asked = structuredClone({
    image: sheet.image, kernel: sheet.kernel, divisor: number("divisor"), padding: number("padding"),
    stride: number("stride"), window: number("window"), pool_stride: number("pool_stride"),
    padding_mode: $("padding_mode").value, pooling: $("pooling").value,
  });
  let found = {}; // if the numbers are refused
  try {
    if (!asked.divisor) throw new Error("divisor=0; allowed: any other number");
    const kernel = asked.kernel.map((row) => row.map((value) => value / asked.divisor));
    found = await send("operation", JSON.stringify({ ...asked, kernel }));
  } finally {
    if (fresh()) show(found, asked);
  }
});

function show(found, asked) {
  Object.assign(sheet, { found, asked });
  for (const name of ["convolution", "relu", "pooling"]) {
    draw(`m-${name}`, found[name] ?? [], (cell, value, r, c) => {
      written(cell, value);
      cell.tabIndex = 0;
      cell.onpointerenter = cell.onfocus = () => told[name](r, c, value);
      cell.onpointerleave = cell.onblur = () => clear();
    });
  }
  clear();
}

function clear() {
  for (const cell of document.querySelectorAll("#operations td.seen")) cell.classList.remove("seen");
  $("sum").textContent = "Point at a number to see where it comes from.";
}

function mark(id, rows, columns) {
  rows.forEach((r) => columns.forEach((c) => $(id).rows[r]?.cells[c]?.classList.add("seen")));
}

const span = (start, size) => Array.from({ length: size }, (_, i) => start + i);

// The index that a place in the padding repeats: itself with zeros, mirrored at the border with `reflect`.
function padded(at, size) {
  if (sheet.asked.padding_mode !== "reflect") return at;
  return at < 0 ? -at : at < size ? at : 2 * (size - 1) - at;
}

const told = {
  convolution(r, c, value) {
    const { image, kernel, divisor, stride, padding } = sheet.asked;
    const rows = span(r * stride - padding, kernel.length).map((y) => padded(y, image.length));
    const columns = span(c * stride - padding, kernel[0].length).map((x) => padded(x, image[0].length));
    mark("m-image", rows, columns);
    const terms = rows.flatMap((y, i) => columns.map((x, j) => [image[y]?.[x] ?? 0, kernel[i][j]]));
    const sum = terms.map(([a, b]) => `${short(a)}·${short(b)}`).join(" + ");
    $("sum").textContent = `${divisor === 1 ? sum : `(${sum}) / ${divisor}`} = ${short(value)}`;
  },
  relu(r, c, value) {
    mark("m-convolution", [r], [c]);
    $("sum").textContent = `max(0, ${short(sheet.found.convolution[r][c])}) = ${short(value)}`;
  },
  pooling(r, c, value) {
    const { window, pool_stride, pooling } = sheet.asked;
    const rows = span(r * pool_stride, window), columns = span(c * pool_stride, window);
    mark("m-relu", rows, columns);
    const values = rows.flatMap((y) => columns.map((x) => short(sheet.found.relu[y][x])));
    $("sum").textContent = `${pooling === "max" ? "max" : "mean"}(${values.join(", ")}) = ${short(value)}`;
  },
};

function redraw() {
  draw("m-image", sheet.image, (cell, value, r, c) => {
    written(cell, value);
    cell.tabIndex = 0;
    cell.onclick = () => { sheet.image[r][c] = -value; redraw(); };
    cell.onkeydown = (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      cell.click();
    };
  });
  draw("m-kernel", sheet.kernel, (cell, value, r, c) => {
    if (!cell.firstChild) cell.append(el("input", { ariaLabel: `weight ${r} ${c}` }));
    const input = cell.firstChild;
    input.value = value;
    input.onchange = () => { sheet.kernel[r][c] = Number(input.value) || 0; redraw(); };
  });
  return compute();
}

const choose = () => busy($("play-panel"), async () => {
  const name = (id) => $(id).selectedOptions[0].text;
  const found = await ask("example", { picture: name("picture"), filter: name("filter") });
  sheet.image = found.image; sheet.kernel = found.kernel; $("divisor").value = found.divisor;
  await redraw();
});

export function start() {
  fill($("picture"), state.model.pictures);
  fill($("filter"), state.model.filters);
  $("picture").onchange = choose;
  $("filter").onchange = choose;
  for (const id of ["divisor", "padding", "padding_mode", "stride", "pooling", "window", "pool_stride"]) {
    $(id).onchange = compute;
  }
  return choose();
}
