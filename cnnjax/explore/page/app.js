"use strict";
const $ = (id) => document.getElementById(id);
const state = { id: null, picture: null, image: [], kernel: [], turn: 0 };

async function ask(path, options) {
  const reply = await fetch(path, options);
  const found = await reply.json().catch(() => ({ error: "the page got no answer" }));
  if (!reply.ok) throw new Error(found.error);
  return found;
}

function guarded(run) {
  return async (...args) => {
    try { $("error").textContent = ""; await run(...args); }
    catch (error) { $("error").textContent = error.message; }
  };
}

function options(select, names) {
  select.replaceChildren(...names.map((name, i) => new Option(name, i)));
}

function picture(address, caption) {
  const figure = document.createElement("figure"), image = document.createElement("img");
  image.src = address; image.alt = caption;
  const words = document.createElement("figcaption");
  words.textContent = caption;
  figure.append(image, words);
  return figure;
}

const upload = guarded(async (file) => {
  const found = await ask("/api/upload", { method: "POST", body: file });
  state.id = found.id; state.picture = found.image;
  $("seen").hidden = false;
  $("predictions").replaceChildren(...found.predictions.map((row) => {
    const item = document.createElement("li"), bar = document.createElement("div");
    item.textContent = `${row.class} ${(100 * row.probability).toFixed(1)} %`;
    bar.className = "bar"; bar.style.width = `${Math.max(1, 100 * row.probability)}%`;
    item.append(bar);
    return item;
  }));
  $("class").value = found.predictions[0].label;
  await Promise.all([showHeat(), showMaps()]);
});

const showHeat = guarded(async () => {
  if (!state.id) return;
  $("method").textContent = "";
  if (!$("cam").checked) { $("image").src = state.picture; return; }
  const found = await ask(`/api/heat?id=${state.id}&class=${$("class").value}`);
  $("image").src = found.image;
  $("method").textContent = found.method === "hires_cam"
    ? "Grad-CAM is empty here; HiResCAM stands in" : "Grad-CAM";
});

const layerName = () => $("layer").selectedOptions[0].text;

const showMaps = guarded(async () => {
  if (!state.id) return;
  const layer = encodeURIComponent(layerName());
  const found = await ask(`/api/maps?id=${state.id}&layer=${layer}`);
  $("shape").textContent = `${found.shape.join(" x ")}`;
  $("patches").replaceChildren();
  $("maps").replaceChildren(...found.maps.map((address, unit) => {
    const figure = picture(address, `unit ${unit}`);
    figure.onclick = () => showPatches(unit, figure);
    return figure;
  }));
});

const showPatches = guarded(async (unit, figure) => {
  for (const other of $("maps").children) other.firstChild.className = "";
  figure.firstChild.className = "on";
  $("unit").textContent = `What unit ${unit} of ${layerName()} likes best`;
  const found = await ask(`/api/patches?layer=${encodeURIComponent(layerName())}&unit=${unit}`);
  $("patches").replaceChildren(...found.patches.map((row) => picture(row.image, row.value.toFixed(2))));
});

function shade(cell, value, limit) {
  const share = Math.min(1, Math.abs(value) / limit) * 0.75;
  cell.style.background = value >= 0 ? `rgb(234 88 12 / ${share})` : `rgb(79 70 229 / ${share})`;
}

function draw(id, rows, fill) {
  const limit = Math.max(1e-9, ...rows.flat().map(Math.abs));
  $(id).replaceChildren(...rows.map((row, r) => {
    const line = document.createElement("tr");
    line.append(...row.map((value, c) => {
      const cell = document.createElement("td");
      shade(cell, value, limit);
      fill(cell, value, r, c);
      return cell;
    }));
    return line;
  }));
}

const written = (cell, value) => { cell.textContent = +value.toFixed(2); };

const compute = guarded(async () => {
  const turn = ++state.turn, divisor = Number($("divisor").value) || 1;
  const number = (id) => Number($(id).value);
  const body = JSON.stringify({
    image: state.image, kernel: state.kernel.map((row) => row.map((value) => value / divisor)),
    padding: number("padding"), stride: number("stride"), window: number("window"),
    pool_stride: number("pool_stride"), padding_mode: $("padding_mode").value, pooling: $("pooling").value,
  });
  const found = await ask("/api/operation", { method: "POST", body });
  if (turn !== state.turn) return;
  for (const name of ["convolution", "relu", "pooling"]) draw(`m-${name}`, found[name] ?? [], written);
});

function redraw() {
  draw("m-image", state.image, (cell, value, r, c) => {
    written(cell, value);
    cell.onclick = () => { state.image[r][c] = -value; redraw(); };
  });
  draw("m-kernel", state.kernel, (cell, value, r, c) => {
    const input = document.createElement("input");
    input.value = value;
    input.onchange = () => { state.kernel[r][c] = Number(input.value) || 0; redraw(); };
    cell.append(input);
  });
  return compute();
}

const choose = guarded(async () => {
  const name = (id) => encodeURIComponent($(id).selectedOptions[0].text);
  const found = await ask(`/api/example?picture=${name("picture")}&filter=${name("filter")}`);
  state.image = found.image; state.kernel = found.kernel; $("divisor").value = found.divisor;
  await redraw();
});

function tab(name) {
  for (const other of ["look", "play"]) {
    $(other).hidden = other !== name;
    $(`tab-${other}`).className = other === name ? "on" : "";
  }
}

const start = guarded(async () => {
  const model = await ask("/api/model");
  $("title").textContent = `${model.model} on ${model.data}`;
  options($("class"), model.classes);
  options($("layer"), model.layers.map((layer) => layer.name));
  options($("picture"), model.pictures);
  options($("filter"), model.filters);
  await choose();
});

$("file").onchange = () => $("file").files[0] && upload($("file").files[0]);
$("drop").ondragover = (event) => { event.preventDefault(); $("drop").className = "over"; };
$("drop").ondragleave = () => { $("drop").className = ""; };
$("drop").ondrop = (event) => {
  event.preventDefault();
  $("drop").className = "";
  if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
};
$("cam").onchange = showHeat;
$("class").onchange = showHeat;
$("layer").onchange = showMaps;
$("picture").onchange = choose;
$("filter").onchange = choose;
for (const id of ["divisor", "padding", "padding_mode", "stride", "pooling", "window", "pool_stride"]) {
  $(id).onchange = compute;
}
$("tab-look").onclick = () => tab("look");
$("tab-play").onclick = () => tab("play");
document.body.dataset.ready = "no";
start().then(() => { document.body.dataset.ready = "yes"; });
