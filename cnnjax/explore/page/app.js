// The page: reads what the network is, starts every part, and switches between the tabs.

import { $, ask, busy, emit, state } from "/dom.js";
import * as compare from "/compare.js";
import * as images from "/images.js";
import * as inspector from "/inspector.js";
import * as network from "/network.js";
import * as operations from "/operations.js";
import * as reasons from "/reasons.js";
import * as training from "/training.js";

const TABS = ["network", "reasons", "compare", "training", "operations"];

function tab(name) {
  for (const other of TABS) {
    $(other).hidden = other !== name;
    $(`tab-${other}`).setAttribute("aria-selected", other === name);
  }
  document.body.dataset.tab = name;
  if (location.hash !== `#${name}`) history.replaceState(null, "", `#${name}`);
  emit("tab", name);
}

function keys(event) {
  if (event.target.closest("input, select, textarea") || event.altKey || event.ctrlKey || event.metaKey) return;
  const name = TABS[Number(event.key) - 1];
  if (name) tab(name);
}

document.body.dataset.ready = "no";
busy(document.body, async () => {
  const model = await ask("model");
  state.model = model;
  $("title").textContent = model.model;
  $("subtitle").textContent = [model.learned ? model.data && `trained on ${model.data}` : "random weights, nothing learned yet",
    model.step && `step ${model.step}`, `${model.classes.length} classes`].filter(Boolean).join(" · ");
  document.title = `${model.model} · cnnjax explore`;
  for (const name of TABS) $(`tab-${name}`).onclick = () => tab(name);
  $("tabs").onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], now = TABS.indexOf(document.body.dataset.tab);
    if (!step) return;
    event.preventDefault();
    event.stopPropagation(); // elsewhere these keys walk along the stages
    const next = TABS[(now + step + TABS.length) % TABS.length];
    tab(next);
    $(`tab-${next}`).focus();
  };
  document.addEventListener("keydown", keys);
  inspector.start();
  network.start();
  reasons.start();
  compare.start();
  training.start();
  tab(TABS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "network");
  await Promise.all([operations.start(), images.start()]);
}).then(() => { document.body.dataset.ready = "yes"; });
