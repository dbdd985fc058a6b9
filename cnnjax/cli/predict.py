"""`cnnjax predict`: classes of images, and pictures of what speaks for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from typing import Annotated as Flag

import numpy as np
from rich.table import Table

from cnnjax.cli.flags import ANY_NUMBER, Json, Workdir, command
from cnnjax.cli.tables import print_json, print_tables, say
from cnnjax.errors import UserError

if TYPE_CHECKING:
    from cnnjax.explore.explain import Explain
    from cnnjax.inference.model import TrainedModel

# What is printed of one image: its classes, the picture that was written, or why it or the image failed.
Row = dict[str, Any]
CALIBRATION = "int8: images, or a data set, to find ranges on (default: the run's validation split)"
Named = Sequence[tuple[str, Any]]  # a name, and an image or why it cannot be read


def load(
    *,
    workdir: Workdir = None,
    model: Flag[str, "network, in place of --workdir; optional if --weights names it"] = "",
    checkpoint: Flag[str, "last, best, or a step"] = "last",
    weights: Flag[str, "raw or ema of a run; or torchvision, timm, hf:USER/NAME, a file"] = "raw",
    protocol: Flag[str | None, "views to average: center, ten_crop ... (default: the run's)"] = None,
    class_names: Flag[str | None, "text file with one class name per line"] = None,
) -> "TrainedModel":
    """The trained network that these flags name."""
    from cnnjax.inference.model import usable
    from cnnjax.runs import loaded

    return usable(
        loaded.load(
            workdir,
            model=model,
            weights=weights,
            checkpoint=checkpoint,
            protocol=protocol,
            class_names=class_names,
        )
    )


@command("predict", words=ANY_NUMBER, like=load)
def predict(
    words: list[str],
    *,
    top: Flag[int, "classes per image", 1] = 5,
    batch_size: Flag[int, "images per batch", 1] = 64,
    dtype: Flag[str | None, "float32, bfloat16 or int8, to compute in (default: the run's)"] = None,
    calibration: Flag[str | None, CALIBRATION] = None,
    json: Json = False,
    explain: Flag[str | bool, "write heat maps next to the images, by METHOD (alone: grad_cam)"] = False,
    out: Flag[str | None, "folder for the pictures of --explain"] = None,
    layer: Flag[str | None, "layer for --explain (default: the last feature map)"] = None,
    **run: str,
) -> None:
    """Prints the most likely classes of images; --explain also draws the evidence for the first."""
    if not words:
        raise UserError("no image; name files or folders, or - to read one from standard input")
    if missing := next((word for word in words if word != "-" and not Path(word).exists()), None):
        raise UserError(f"{missing} is neither a file nor a folder")
    method = {"true": "grad_cam", "false": ""}.get(str(explain), str(explain)) if explain else ""
    for flag, value in {"out": out, "layer": layer}.items():
        if value and not method:
            raise UserError(f"--{flag}={value} needs --explain; add it, or leave --{flag} out")
    trained = load(**run)
    network = trained.with_dtype(dtype, calibration)
    if dtype == "int8":
        say(network.agreement(), error=True)
    from cnnjax.inference.images import list_folder

    images: list[str | Path] = []
    for word in words:
        files, others = list_folder(word) if Path(word).is_dir() else ([word], "")
        images += files
        if others:
            say(f"{word}: skipped {others}", error=True)
    explainer = None
    if method:
        from cnnjax.explore import explain as explain_lib

        # Integers have no gradients.
        explainer = explain_lib.explainer(trained if dtype == "int8" else network, layer, method)
    good, errors, unwritten = list[Row](), list[str](), list[str]()
    for batch in network.batches(images, batch_size):
        for row in _predict_batch(network, batch, top, batch_size, explainer, out):
            if json:
                print_json(row)
            if "error" in row:
                (unwritten if "classes" in row else errors).append(row["error"])
            if "classes" in row and not json:
                good.append(row)
    if good:
        print_tables(_table(good))
    problems = {"images could not be read": errors, "pictures could not be written": unwritten}
    if told := [f"{len(each)} of the {what}: {each[0]}" for what, each in problems.items() if each]:
        raise UserError("; ".join(told))


def _predict_batch(
    trained: "TrainedModel", batch: Named, top: int, size: int, explainer: "Explain | None", out: str | None
) -> list[Row]:
    from cnnjax.inference.images import Failure

    rows: list[Row] = []
    images, labels = [], []
    for (name, image), item in zip(batch, trained.classify(batch, top=top, batch_size=size), strict=True):
        if isinstance(item, Failure):
            rows.append({"image": name, "error": item.reason})
            continue
        classes = [{"class": label, "probability": round(share, 6)} for label, share in item.top]
        rows.append({"image": name, "classes": classes})
        images.append(image)
        labels.append(int(np.argmax(item.probabilities)))
    if explainer and images:
        from cnnjax.explore.explain import pictures, save_beside

        drawn = pictures(trained, images, explainer(images, labels, size))
        explained = (row for row in rows if "classes" in row)
        for row, (method, picture) in zip(explained, drawn, strict=True):
            try:
                row |= {"method": method, "explanation": str(save_beside(picture, row["image"], out))}
            except UserError as error:
                row["error"] = str(error)
    return rows


def _table(rows: Sequence[Row]) -> Table:
    picture = ["picture"] if any("explanation" in row for row in rows) else []
    table = Table("image", *(str(i) for i, _ in enumerate(rows[0]["classes"], 1)), *picture)
    for row in rows:
        cells = [f"{item['class']} {100 * item['probability']:.1f} %" for item in row["classes"]]
        table.add_row(row["image"], *cells, *([row.get("explanation", "")] if picture else []))
    return table
