// The network as a picture: an outline of all stages, and a row of cards to walk along.

import { $, FAMILIES, ask, busy, compact, el, emit, family, on, picture, sized, state, svg, title } from "/dom.js";

const cards = [];

function outline(stages) {
  const tall = 96, roof = 40;
  const size = (stage) => (stage.shape.length === 3 ? Math.max(stage.shape[0], 1) : 1);
  const most = Math.max(...stages.map(size));
  const widths = stages.map((stage) => 5 + 2.2 * Math.log2(stage.shape.at(-1) + 1));
  const spread = Math.min(4, Math.max(1, 820 / widths.reduce((sum, width) => sum + width + 3, 0)));
  let x = 4;
  const places = stages.map((stage) => {
    const width = spread * widths[stages.indexOf(stage)], height = 10 + (tall - 10) * Math.sqrt(size(stage) / most);
    const place = { x, width, height: stage.shape.length === 3 ? height : 10 + 3.2 * Math.log2(stage.shape.at(-1) + 1) };
    x += width + 3 * spread;
    return place;
  });
  const made = svg("svg", { viewBox: `0 0 ${x + 4} ${roof + tall + 6}`, class: "outline", preserveAspectRatio: "xMinYMid meet" });
  const middle = (i) => places[i].x + places[i].width / 2;
  stages.forEach((stage, i) => {
    for (const source of stage.sources.filter((s) => s >= 0 && s < i - 1)) {
      const a = middle(source), b = middle(i), rise = Math.min(roof - 6, 8 + (b - a) / 6);
      const height = roof + tall / 2 - Math.max(...places.slice(source, i + 1).map((p) => p.height)) / 2;
      const top = height - rise;
      made.append(svg("path", { d: `M${a},${height} C${a},${top} ${b},${top} ${b},${height}`, class: "skip" }));
    }
  });
  stages.forEach((stage, i) => {
    const { x: left, width, height } = places[i];
    const box = svg("rect", { x: left, y: roof + (tall - height) / 2, width, height, rx: 2, class: `block ${family(stage)}` });
    box.append(svg("title", {}, `${title(stage)}, ${sized(stage.shape)}`));
    box.addEventListener("click", () => choose(i));
    made.append(box);
  });
  $("outline").replaceChildren(made);
  const used = new Set(stages.map(family));
  $("families").replaceChildren(...Object.entries(FAMILIES).filter(([name]) => used.has(name))
    .map(([name, words]) => el("li", {}, el("i", { className: name }), words)));
}

function card(stage, number) {
  const cost = [stage.params && `${compact(stage.params)} par.`, stage.macs && `${compact(stage.macs)} MACs`];
  const button = el("button", { className: `card ${family(stage)}`, onclick: () => choose(number) },
    el("span", { className: "frame" }, el("img", { alt: "" })), el("b", {}, title(stage)),
    el("span", {}, sized(stage.shape)), el("small", {}, cost.filter(Boolean).join(" · ") || "no parameters"));
  button.setAttribute("aria-pressed", "false");
  cards.push(button);
  return button;
}

function rail(stages) {
  const groups = [];
  stages.forEach((stage, i) => {
    const name = stage.module.split("/")[0] || groups.at(-1)?.name || "network";
    if (groups.at(-1)?.name !== name) groups.push({ name, cards: [] });
    groups.at(-1).cards.push(card(stage, i));
  });
  $("rail").replaceChildren(...groups.map((group) =>
    el("li", {}, el("h3", {}, group.name), el("div", {}, ...group.cards))));
}

export function choose(number, unit = 0) {
  const last = state.model.stages.length - 1;
  state.stage = Math.min(last, Math.max(0, number));
  state.unit = unit;
  cards.forEach((button, i) => button.setAttribute("aria-pressed", i === state.stage));
  $("outline").querySelectorAll(".block").forEach((box, i) => box.classList.toggle("on", i === state.stage));
  const button = cards[state.stage], row = $("rail");
  row.scrollTo({ left: button.offsetLeft - row.offsetLeft - row.clientWidth / 2 + button.clientWidth / 2, behavior: "smooth" });
  emit("stage", state.stage);
}

on("image", (image) => busy($("walk"), async (fresh) => {
  const found = await ask("walk", { id: image.id });
  if (!fresh()) return;
  found.pictures.forEach((address, i) => { cards[i].querySelector("img").src = address; });
}));

export function start() {
  const { stages, params, macs } = state.model;
  outline(stages);
  rail(stages);
  $("totals").textContent = `${stages.length} stages, ${compact(params)} parameters, ${compact(macs)} MACs per image`;
  choose(0);
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea, [data-keys]");
    if (typing || $("network").hidden || event.altKey || event.ctrlKey || event.metaKey) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(state.stage + step);
    cards[state.stage].focus({ preventScroll: true });
  });
}
