// Two images side by side: where in the network they part, and by which units.

import { $, ask, bars, busy, chart, el, fill, on, picture, short, sized, state, title } from "/dom.js";
import { thumbnails } from "/images.js";

let other = null, stage = null;

const showOther = (id) => busy($("otherpanel"), async (fresh) => {
  const found = await ask("look", { id });
  if (!fresh()) return;
  other = found;
  $("otherimage").src = found.image;
  $("otherimage").hidden = false;
  $("otherpredictions").replaceChildren(...bars(found.predictions.slice(0, 3)));
  for (const each of $("others").querySelectorAll("button")) each.setAttribute("aria-pressed", each.dataset.id === id);
  compare();
});

const compare = () => busy($("partpanel"), async (fresh) => {
  if (!state.image || !other || $("compare").hidden) return;
  const found = await ask("compare", { id: state.image.id, other: other.id });
  if (!fresh()) return;
  const map = state.model.stages.findLastIndex((row) => row.shape.length === 3);
  stage ??= map < 0 ? state.model.stages.length - 1 : map;
  $("part").value = stage;
  const points = found.similarity.map((value, i) => [i, value]);
  $("similarity").replaceChildren(chart([{ points, color: "var(--accent)" }], {
    x: "stage; click to see its units", y: "cosine similarity", low: Math.min(0, ...found.similarity), high: 1, mark: stage,
    choose: (at) => { stage = Math.min(points.length - 1, Math.max(0, Math.round(at))); compare(); },
  }));
  differences();
});

const differences = () => busy($("unitspanel"), async (fresh) => {
  const found = await ask("differences", { id: state.image.id, other: other.id, stage });
  if (!fresh()) return;
  const row = state.model.stages[stage];
  $("differing").textContent = `Units that differ most at stage ${stage}: ${title(row)} ${row.module}`;
  $("differences").replaceChildren(...found.units.map((unit) => el("figure", {},
    el("div", { className: "pair" }, ...unit.maps.map((address, i) => picture(address, `map of ${"AB"[i]}`))),
    el("figcaption", {}, `unit ${unit.unit}: `, el("b", {}, `${short(unit.means[0])} | ${short(unit.means[1])}`)))));
});

export function start() {
  fill($("part"), state.model.stages.map((row, i) => `${i} ${title(row)}, ${sized(row.shape)}`));
  $("part").onchange = () => { stage = Number($("part").value); compare(); };
  const first = () => {
    if (!$("others").children.length) $("others").replaceChildren(...thumbnails(state.samples ?? [], showOther));
    if (state.image) $("oneimage").src = state.image.image;
    if (state.image) $("onepredictions").replaceChildren(...bars(state.image.predictions.slice(0, 3)));
    if (!$("compare").hidden && !other && state.samples?.length > 1) showOther(state.samples.find((row) => row.id !== state.image?.id).id);
    else compare();
  };
  on("image", first);
  on("tab", first);
  $("use").onclick = () => { if (state.image) showOther(state.image.id); };
}
