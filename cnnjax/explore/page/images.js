// The image that everything is about: a test image, an upload or a drawing, and what it is taken for.

import { $, ask, bars, busy, el, emit, picture, send, state } from "/dom.js";

function show(found) {
  state.image = found;
  $("image").src = found.image;
  $("seen").hidden = false;
  $("predictions").replaceChildren(...bars(found.predictions));
  const right = found.truth === found.predictions[0].class;
  $("truth").textContent = found.truth ? `${right ? "✓" : "✗"} it is ${found.truth}` : "";
  $("truth").className = right ? "right" : "wrong";
  for (const each of $("samples").querySelectorAll("button")) {
    each.setAttribute("aria-pressed", each.dataset.id === found.id);
  }
  emit("image", found);
}

export function look(id) {
  return busy($("side"), async (fresh) => {
    const found = await ask("look", { id });
    if (fresh()) show(found);
  });
}

function upload(blob) {
  return busy($("side"), async (fresh) => {
    await blob.slice(0, 1).arrayBuffer().catch((error) => { throw new Error(`${blob.name}: ${error.message}`); });
    const found = await send("upload", blob);
    if (fresh()) show(found);
  });
}

export function thumbnails(rows, choose) {
  return rows.map((row) => {
    const name = row.class ? `test image: ${row.class}` : "test image";
    const button = el("button", { className: "thumb", title: name, onclick: () => choose(row.id) },
      picture(row.image, name));
    button.dataset.id = row.id;
    button.setAttribute("aria-pressed", "false");
    return button;
  });
}

function drawing(size) {
  const canvas = $("canvas"), pen = canvas.getContext("2d");
  canvas.height = Math.round((canvas.width * size[0]) / size[1]);
  let last = null, waiting = null;
  const clear = () => { pen.fillStyle = "#000"; pen.fillRect(0, 0, canvas.width, canvas.height); };
  const post = () => {
    const small = el("canvas", { width: size[1], height: size[0] });
    const brush = small.getContext("2d");
    brush.imageSmoothingQuality = "high";
    brush.drawImage(canvas, 0, 0, size[1], size[0]);
    small.toBlob(upload, "image/png");
  };
  const later = (wait) => { clearTimeout(waiting); waiting = setTimeout(post, wait); };
  const place = (event) => {
    const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  const stroke = (event) => {
    const [x, y] = place(event), [fromX, fromY] = last ?? [x, y];
    pen.strokeStyle = `rgb(${$("ink").value} ${$("ink").value} ${$("ink").value})`;
    pen.lineWidth = Number($("brush").value);
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(fromX, fromY);
    pen.lineTo(x, y + 0.01);
    pen.stroke();
    last = [x, y];
    later(150);
  };
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); last = null; stroke(event); });
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) stroke(event); });
  canvas.addEventListener("pointerup", () => { last = null; });
  $("clear").onclick = clear;
  $("draw").hidden = false;
  $("draw").onclick = () => {
    const opened = $("board").hidden;
    $("board").hidden = !opened;
    $("draw").setAttribute("aria-expanded", opened);
  };
  clear();
}

export async function start() {
  $("file").onchange = () => {
    const [file] = $("file").files;
    $("file").value = ""; // so that the same file can be chosen again
    if (file) upload(file);
  };
  $("choose").hidden = $("drop").hidden = ![1, 3].includes(state.model.input[2]); // image files are grey or RGB
  const side = $("side");
  side.ondragover = (event) => { event.preventDefault(); side.classList.add("over"); };
  side.ondragleave = () => side.classList.remove("over");
  side.ondrop = (event) => {
    event.preventDefault();
    side.classList.remove("over");
    if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
  };
  if (state.model.drawable) drawing(state.model.drawable);
  let chosen = state.model.last;
  await busy($("picker"), async () => {
    const found = await ask("samples");
    state.samples = found.images;
    $("samples").replaceChildren(...thumbnails(found.images, look));
    $("from").textContent = found.own ? `Test images of ${found.data}` : `Images of ${found.data}; none are known of its own`;
    chosen ||= found.images[0]?.id;
  });
  if (chosen) await look(chosen);
}
