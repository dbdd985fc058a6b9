// Why this class: heat maps of every method side by side, and the tests that tell which to trust.

import { $, ask, busy, chart, COLORS, el, fill, legend, on, percent, picture, state } from "/dom.js";

const METHODS = {
  grad_cam: ["Grad-CAM", "the last maps, weighted by their mean gradient"],
  grad_cam_plus_plus: ["Grad-CAM++", "weights by place, for several objects"],
  layer_cam: ["LayerCAM", "each place by its own positive gradient"],
  score_cam: ["ScoreCAM", "no gradient: the image masked by each map"],
  eigen_cam: ["EigenCAM", "the first principal component, any class"],
  occlusion: ["Occlusion", "how far the logit falls under a square"],
  integrated_gradients: ["Integrated gradients", "each pixel's share, summed from grey to image"],
  hires_cam: ["HiResCAM", "gradient of each place, for dense heads"],
  saliency: ["Saliency", "the size of the gradient at each pixel"],
};
const cards = {};
let chosen = "grad_cam", shownFor = "", drawn = {};

const asked = (method) => ({ id: state.image.id, class: $("class").value, method, layer: $("layer").value });
const key = () => (state.image ? `${state.image.id}/${$("class").value}/${$("layer").value}` : "");

function card(name) {
  const [words, meaning] = METHODS[name];
  const image = el("img", { alt: `heat map of ${words}` });
  const button = el("button", { className: "frame", onclick: () => choose(name) }, image);
  const made = el("article", { className: "method" }, button, el("h3", {}, words), el("p", { className: "dim" }, meaning));
  cards[name] = made;
  return made;
}

function choose(name) {
  chosen = name;
  for (const [other, made] of Object.entries(cards)) made.classList.toggle("on", other === name);
  $("chosen").textContent = METHODS[name][0];
}

const showOne = (name) => busy(cards[name], async (fresh) => {
  const start = performance.now(), of = key();
  const found = await ask("heat", asked(name));
  if (!fresh() || of !== key()) return;
  $("probability").textContent = percent(found.probability);
  cards[name].querySelector("img").src = found.image;
  const other = found.method === name ? "" : `empty here; ${METHODS[found.method][0]} stands in. `;
  cards[name].querySelector("p").textContent = `${other}${METHODS[name][1]}`;
  cards[name].title = `${((performance.now() - start) / 1000).toFixed(1)} s`;
});

async function show() {
  if (!state.image || $("reasons").hidden || shownFor === key()) return;
  const now = shownFor = key();
  drawn = {};
  $("curves").replaceChildren();
  $("sanity").replaceChildren();
  $("verdict").textContent = $("probability").textContent = "";
  for (const made of Object.values(cards)) made.querySelector("img").removeAttribute("src");
  for (const name of Object.keys(cards)) {
    if (shownFor !== now) return;
    await showOne(name);
  }
}

const curves = () => busy($("curvespanel"), async (fresh) => {
  const of = key();
  let refused = null; // some methods need a map, which not every network has
  for (const name of Object.keys(cards)) {
    try { drawn[name] ??= await ask("curves", asked(name)); } catch (error) { refused = error; }
    if (!fresh() || of !== key()) return;
    if (drawn[name]) drawCurves();
  }
  if (!Object.keys(drawn).length) throw refused;
});

function drawCurves() {
  const series = Object.keys(drawn).map((name) => ({
    name: METHODS[name][0], color: COLORS[Object.keys(METHODS).indexOf(name)], found: drawn[name],
  }));
  const lines = (which) => series.map((row) => ({
    ...row, points: row.found[which].map((value, i, all) => [(100 * i) / (all.length - 1), value]),
  }));
  const axes = { low: 0, high: 1, y: "probability" };
  const rows = series.map((row) => el("tr", {}, el("th", {}, row.name),
    el("td", {}, row.found.deletion_area.toFixed(3)), el("td", {}, row.found.insertion_area.toFixed(3))));
  $("curves").replaceChildren(
    el("figure", {}, el("figcaption", {}, "Deletion: a steep fall is good"), chart(lines("deletion"), { ...axes, x: "% of pixels deleted, hottest first" })),
    el("figure", {}, el("figcaption", {}, "Insertion: a steep rise is good"), chart(lines("insertion"), { ...axes, x: "% of pixels inserted, hottest first" })),
    legend(series),
    el("table", { className: "numbers" }, el("tr", {}, el("th", {}, "Mean of the curve"), el("th", {}, "deletion ↓"), el("th", {}, "insertion ↑")), ...rows));
}

const sanity = () => busy($("sanitypanel"), async (fresh) => {
  const of = key(), method = chosen;
  const found = await ask("sanity", asked(method));
  if (!fresh() || of !== key()) return;
  const original = cards[method].querySelector("img").src;
  const figure = (address, name, value) => el("figure", {}, picture(address, name), el("figcaption", {}, name, el("br"), el("b", {}, value)));
  $("sanity").replaceChildren(figure(original, "trained", "1.00"),
    ...found.rows.map((row) => figure(row.image, `+ ${row.module}`, row.correlation.toFixed(2))));
  const last = Math.abs(found.rows.at(-1).correlation);
  $("verdict").textContent = last < 0.5
    ? `${METHODS[found.method][0]} changes with the weights: rank correlation ${last.toFixed(2)} once all are random.`
    : `${METHODS[found.method][0]} stays much the same with random weights (${last.toFixed(2)}): it shows the image more than the network.`;
});

export function start() {
  const { model } = state;
  fill($("class"), model.classes);
  fill($("layer"), ["last map", ...model.layers.map((row) => row.name)], ["", ...model.layers.map((row) => row.name)]);
  $("methods").replaceChildren(...Object.keys(METHODS).filter((name) => model.methods.some((row) => row.name === name)).map(card));
  choose("grad_cam");
  $("class").onchange = $("layer").onchange = show;
  $("run-curves").onclick = curves;
  $("run-sanity").onclick = sanity;
  on("image", (image) => { $("class").value = image.predictions[0].label; show(); });
  on("tab", show);
}
