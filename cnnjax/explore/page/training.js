// A run as it learned: a slider over its checkpoints, with filters, maps and predictions of each.

import { $, ask, bars, busy, chart, el, fill, legend, on, picture, short, sized, state, title } from "/dom.js";

let run = null, playing = null;
const KEPT = 100, kept = new Map(); // answers, the oldest first

async function at({ step }) {
  const stage = $("watched").value;
  const name = `${step}/${state.image.id}/${stage}`;
  const found = kept.get(name) ?? await ask("step", { step, id: state.image.id, stage });
  kept.set(name, found);
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  return found;
}

function curves(step) {
  const { loss, validation_loss: heldLoss, accuracy, validation_accuracy: held } = run.curves;
  const draw = (rows, words, options) => {
    const series = rows.filter((row) => row.points?.length);
    return series.length ? [el("figure", {}, el("figcaption", {}, words),
      chart(series, { x: "step", y: words, mark: step, choose: (at) => { place(at); show(); }, ...options }), legend(series))] : [];
  };
  const both = (a, b) => [{ name: "training", points: a, color: "var(--c1)" }, { name: "validation", points: b, color: "var(--c2)", dashed: true }];
  $("runcurves").replaceChildren(...draw(both(loss, heldLoss), "Loss", { low: 0 }),
    ...draw(both(accuracy, held), "Accuracy", { low: 0, high: 1 }));
}

function place(step) {
  const apart = run.steps.map((row) => Math.abs(row.step - step));
  $("step").value = apart.indexOf(Math.min(...apart));
}

const chosen = () => run.steps[Number($("step").value)];

// The checkpoints and curves so far; the slider stays at its step, or at the end if it was there.
async function read() {
  const slider = $("step"), before = run && slider.value !== slider.max ? chosen().step : Infinity;
  run = await ask("training");
  const last = run.steps.length - 1;
  slider.max = last;
  place(Math.min(before, run.steps[last].step));
  $("fewsteps").hidden = run.steps.length > 5;
  $("run").hidden = false;
}

const show = () => busy($("steppanel"), async (fresh) => {
  if (!run || !state.image) return;
  let row = chosen(), found;
  try { found = await at(row); } catch { // a run that still trains removes older checkpoints
    await read();
    row = chosen();
    found = await at(row);
  }
  if (!fresh()) return;
  const { step, metrics } = row;
  const told = Object.entries(metrics).filter(([name]) => ["accuracy", "loss"].includes(name)).map(([name, value]) => `${name} ${short(value)}`);
  $("steptext").textContent = [step ? `step ${step}` : "before training", ...told].join(", ");
  $("stepfilters").replaceChildren(...(found.filters?.filters ?? []).map((address, i) => el("span", { className: "tile" }, picture(address, `filter ${i}`))));
  const values = (found.maps.values ?? []).slice(0, 32).map((value, i) => el("span", { title: `unit ${i}` }, short(value)));
  $("stepmaps").replaceChildren(...values, ...found.maps.maps.slice(0, 32).map((address, i) => el("span", { className: "tile" }, picture(address, `map ${i}`))));
  $("steppredictions").replaceChildren(...bars(found.predictions));
  curves(step);
});

const open = () => busy($("training"), async () => {
  if ($("training").hidden || !state.image) return;
  if (!run) {
    const all = state.model.stages.map((row, i) => [row, i]), deep = all.filter(([row]) => row.shape.length === 3);
    const maps = deep.length ? deep : all;
    fill($("watched"), maps.map(([row, i]) => `${i} ${title(row)}, ${sized(row.shape)}`), maps.map(([, i]) => i));
  }
  await read();
  await show();
});

function play() {
  if (playing) { clearInterval(playing); playing = null; $("play").textContent = "▶ Play"; return; }
  const slider = $("step");
  if (slider.value === slider.max) slider.value = 0;
  $("play").textContent = "❚❚ Pause";
  playing = setInterval(async () => {
    if ($("steppanel").hasAttribute("aria-busy")) return;
    if (slider.value === slider.max) return play();
    slider.value = Number(slider.value) + 1;
    await show();
  }, 350);
}

export function start() {
  $("step").oninput = show;
  $("watched").onchange = show;
  $("play").onclick = play;
  on("tab", open);
  on("image", open);
}
