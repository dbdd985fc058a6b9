// What all parts of the page share: elements, requests, busy signs, what is chosen, small charts.

export const $ = (id) => document.getElementById(id);
export const state = { model: null, image: null, stage: 0, unit: 0 };
const listeners = {};

export function on(name, run) { (listeners[name] ??= []).push(run); }
export function emit(name, value) { for (const run of listeners[name] ?? []) run(value); }

export function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function svg(tag, given = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(given)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export async function ask(path, values) {
  const query = values ? `?${new URLSearchParams(values)}` : "";
  return read(await fetch(`/api/${path}${query}`).catch(lost));
}

export async function send(path, body) {
  return read(await fetch(`/api/${path}`, { method: "POST", body }).catch(lost));
}

function lost() { throw new Error("cnnjax explore has stopped; start it again and reload"); }

async function read(reply) {
  const found = await reply.json().catch(() => ({ error: "the page got no answer; see the terminal" }));
  if (!reply.ok) throw new Error(found.error);
  return found;
}

const turns = new WeakMap();

// Shows the sign of work on a panel at once, and its error there; a later call replaces an earlier one.
export async function busy(root, work) {
  const turn = (turns.get(root) ?? 0) + 1;
  turns.set(root, turn);
  const fresh = () => turns.get(root) === turn;
  root.setAttribute("aria-busy", "true");
  tell(root, "");
  try { await work(fresh); } catch (error) { if (fresh()) tell(root, error.message); }
  if (fresh()) root.removeAttribute("aria-busy");
}

function tell(root, message) {
  let line = root.querySelector(":scope > .error");
  if (!line && !message) return;
  if (!line) {
    line = el("p", { className: "error" });
    line.setAttribute("role", "alert");
    const heading = root.querySelector(":scope > h2, :scope > h3, :scope > header");
    if (heading) heading.after(line); else root.prepend(line);
  }
  line.textContent = message;
  line.hidden = !message;
}

export function compact(number) {
  for (const [size, unit] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (number >= size) return `${(number / size).toPrecision(3)}${unit}`;
  }
  return `${number}`;
}

export const short = (number) => (number === null ? "·" : `${+number.toPrecision(3)}`.replace("-", "−"));
export const percent = (share) => `${(100 * share).toFixed(1)} %`;
export const sized = (shape) => shape.join(" × ");

export function picture(address, text, given = {}) {
  return el("img", { src: address, alt: text, ...given });
}

export function fill(select, names, values = names.map((_, i) => i)) {
  select.replaceChildren(...names.map((name, i) => new Option(name, values[i])));
}

// Replaces what is inside; if it had the focus, what takes its place gets it.
export function replace(root, ...children) {
  const inside = () => [...root.querySelectorAll("button")], at = inside().indexOf(document.activeElement);
  root.replaceChildren(...children);
  if (at >= 0) (inside()[at]?.disabled === false ? inside()[at] : root.querySelector("button:enabled"))?.focus();
}

export function bars(rows) {
  return rows.map((row) => {
    const bar = el("span", { className: "bar" });
    bar.style.width = `${Math.max(0.5, 100 * row.probability)}%`;
    return el("li", {}, el("span", { className: "name", title: row.class }, row.class),
      el("span", { className: "share" }, percent(row.probability)), el("span", { className: "track" }, bar));
  });
}

// What a stage is called on its card.
export function title(stage) {
  const window = stage.window, size = window ? window.size.join("×") : "";
  const stride = window && Math.max(...window.stride) > 1 ? ` /${window.stride[0]}` : "";
  if (stage.kind === "convolution") {
    const deep = window && window.groups > 1;
    const name = !deep ? "Conv" : window.groups === stage.shape.at(-1) ? "Depthwise" : "Grouped conv";
    return `${name} ${size}${stride}`;
  }
  const names = {
    "normalization": "Normalize", "max pooling": `Max pool ${size}${stride}`, "addition": "Add",
    "average pooling": `Mean pool ${size}${stride}`, "global average pooling": "Global mean",
    "global max pooling": "Global max", "flattening": "Flatten", "dense layer": "Dense",
    "concatenation": "Concatenate", "response normalization": "Response norm",
  };
  return names[stage.kind] ?? stage.kind[0].toUpperCase() + stage.kind.slice(1);
}

// The family of a stage, which is its colour.
export function family(stage) {
  const kind = stage.kind;
  if (kind === "convolution" || kind === "dense layer") return kind === "convolution" ? "conv" : "dense";
  if (kind.includes("pooling")) return "pool";
  if (kind.includes("normal")) return "norm";
  if (["addition", "concatenation", "scaling"].includes(kind)) return "join";
  return ["flattening", "rearrangement", "cut", "channel shuffle", "channel split"].includes(kind) ? "form" : "act";
}

export const FAMILIES = {
  conv: "convolution", norm: "normalization", act: "activation", pool: "pooling", join: "addition, concatenation",
  form: "reshaping", dense: "dense",
};

// A line chart; series are {name, points: [[x, y]], color, dashed}. `choose` gets the x that is clicked.
export function chart(series, { x = "", y = "", low = null, high = null, mark = null, choose = null } = {}) {
  const all = series.flatMap((row) => row.points), wide = 520, tall = 250, left = 46, foot = 44, top = 10;
  const xs = all.map((p) => p[0]).concat(mark ?? []), ys = all.map((p) => p[1]);
  const x0 = Math.min(...xs), x1 = Math.max(...xs), across = x1 - x0 || 1;
  const y0 = low ?? Math.min(...ys), y1 = high ?? Math.max(...ys, y0 + 1e-9);
  const atX = (v) => left + ((v - x0) / across) * (wide - left - 12);
  const atY = (v) => tall - foot - ((v - y0) / (y1 - y0)) * (tall - foot - top);
  const made = svg("svg", { viewBox: `0 0 ${wide} ${tall}`, class: "chart", role: "img", "aria-label": `${y} by ${x}` });
  for (let i = 0; i <= 4; i++) {
    const value = y0 + ((y1 - y0) * i) / 4, place = atY(value);
    made.append(svg("line", { x1: left, x2: wide - 12, y1: place, y2: place, class: "rule" }),
      svg("text", { x: left - 6, y: place + 4, "text-anchor": "end" }, `${+value.toPrecision(2)}`));
  }
  const middle = (x0 + x1) / 2; // of stages and steps a whole one
  for (const value of new Set([x0, x1 - x0 > 2 ? Math.floor(middle) : middle, x1])) {
    const anchor = value === x0 ? "start" : value === x1 ? "end" : "middle";
    made.append(svg("text", { x: atX(value), y: tall - foot + 18, "text-anchor": anchor }, `${+value.toPrecision(Number.isInteger(value) ? 16 : 4)}`));
  }
  made.append(svg("text", { x: (left + wide) / 2, y: tall - 4, "text-anchor": "middle" }, x));
  if (mark !== null) made.append(svg("line", { x1: atX(mark), x2: atX(mark), y1: top, y2: tall - foot, class: "mark" }));
  for (const row of series) {
    const points = row.points.map(([a, b]) => [atX(a).toFixed(1), atY(Math.min(y1, Math.max(y0, b))).toFixed(1)]);
    const [[cx, cy]] = points, shape = points.length > 1 ? ["polyline", { points: points.join(" ") }] : ["circle", { cx, cy, r: 3 }];
    const line = svg(shape[0], { ...shape[1], class: row.dashed ? "line dashed" : "line" });
    line.style.stroke = row.color;
    made.append(line);
  }
  if (choose) made.addEventListener("click", (event) => {
    const box = made.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * wide;
    choose(x0 + ((at - left) / (wide - left - 12)) * across);
  });
  return made;
}

export function legend(series) {
  return el("ul", { className: "legend" }, ...series.map((row) => {
    const key = el("i", { className: row.dashed ? "dashed" : "" });
    key.style.borderColor = row.color;
    return el("li", {}, key, row.name);
  }));
}

export const COLORS = ["var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)", "var(--c7)",
  "var(--c8)", "var(--c9)"];
