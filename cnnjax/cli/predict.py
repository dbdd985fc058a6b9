"""The commands that look at trained networks: predict, explore, report, export."""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from cnnjax.cli.flags import parse_flags
from cnnjax.cli.tables import print_table
from cnnjax.errors import UserError, unknown

MANY = 1_000_000  # words that a command takes


def _define_run(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "run folder", flag_values=values)
    flags.DEFINE_string("checkpoint", "last", "last, best, or a step", flag_values=values)
    flags.DEFINE_string("weights", "raw", "raw, or ema", flag_values=values)
    flags.DEFINE_string("protocol", None, "views to average; the run's own", flag_values=values)


def _load(values: flags.FlagValues) -> Any:
    if not values.workdir:
        raise UserError("--workdir is missing; name the run folder that `cnnjax train` left")
    from cnnjax.inference.model import load_run

    chosen = {"checkpoint": values.checkpoint, "weights": values.weights}
    return load_run(values.workdir, **chosen, protocol=values.protocol)


def predict(args: list[str]) -> None:
    """Prints the most likely classes of images; with --explain also draws where the network looked."""

    def define(values: flags.FlagValues) -> None:
        _define_run(values)
        flags.DEFINE_integer("top", 5, "classes an image", flag_values=values, lower_bound=1)
        flags.DEFINE_integer("batch_size", 64, "images at a time", flag_values=values, lower_bound=1)
        flags.DEFINE_bool("json", False, "print a line of JSON for each image", flag_values=values)
        flags.DEFINE_bool("explain", False, "write Grad-CAM beside each image", flag_values=values)
        flags.DEFINE_string("out", None, "folder for what --explain writes", flag_values=values)
        flags.DEFINE_string("method", "grad_cam", "of --explain", flag_values=values)
        flags.DEFINE_string("layer", None, "that --explain looks at; the last", flag_values=values)
        flags.DEFINE_string("class_names", None, "file, a name a line", flag_values=values)

    values, words = parse_flags("predict", args, define, max_names=MANY)
    if not words:
        raise UserError("no image; name files or folders, or - for an image on the standard input")
    if missing := next((word for word in words if word != "-" and not Path(word).exists()), None):
        raise UserError(f"{missing} is neither a file nor a folder")
    trained = _load(values)
    if values.class_names:
        trained = trained.with_class_names(values.class_names)
    explainer = None
    if values.explain:
        from cnnjax.explore.explain import Explainer

        explainer = Explainer(trained, values.layer, values.method)
    found, failed = [], []
    for batch in trained.batches(words, values.batch_size):
        for row in _predict_batch(trained, explainer, batch, values):
            if "error" in row:
                failed.append(row["error"])
            if values.json:
                print(json.dumps(row), flush=True)
            elif "error" not in row:
                found.append(row)
    if found:
        _print_predictions(found)
    if failed:
        raise UserError(f"{len(failed)} of the images could not be read: {failed[0]}")


def _predict_batch(trained: Any, explainer: Any, batch: Any, values: Any) -> list[dict[str, Any]]:
    """A row for each image of a batch: name and classes, or error; and the picture that was written."""
    rows, shown = [], []
    for (name, image), item in zip(
        batch, trained.classify(batch, top=values.top, batch_size=values.batch_size), strict=True
    ):
        if hasattr(item, "reason"):
            rows.append({"image": name, "error": item.reason})
            continue
        classes = [{"class": label, "probability": round(share, 6)} for label, share in item.top]
        rows.append({"image": name, "classes": classes})
        shown.append((rows[-1], image, int(item.probabilities.argmax())))
    if explainer and shown:
        from cnnjax.explore.explain import save_beside

        pictures = explainer.pictures(
            [image for _, image, _ in shown], [label for _, _, label in shown], values.batch_size
        )
        for (row, _, _), (method, picture) in zip(shown, pictures, strict=True):
            row["method"] = method
            row["explanation"] = str(save_beside(picture, row["image"], values.out))
    return rows


def _print_predictions(rows: list[dict[str, Any]]) -> None:
    explained = "explanation" in rows[0]
    columns = [str(i) for i in range(1, len(rows[0]["classes"]) + 1)]
    table = Table("image", *columns, *(["picture"] if explained else []))
    for row in rows:
        cells = [f"{item['class']} {100 * item['probability']:.1f} %" for item in row["classes"]]
        table.add_row(row["image"], *cells, *([row["explanation"]] if explained else []))
    print_table(table)


def report(args: list[str]) -> None:
    """Writes the page of one run, or one page that compares several."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("out", None, "file of the comparison; comparison.html", flag_values=values)

    values, words = parse_flags("report", args, define, max_names=MANY)
    if not words:
        raise UserError("no run folder; usage: cnnjax report DIR, or cnnjax report DIR DIR ...")
    from cnnjax.explore import comparison
    from cnnjax.explore import report as page

    if len(words) == 1 and not values.out:
        written = page.write(words[0])
    else:
        written = comparison.write(words, values.out or "comparison.html")
    Console().print(f"wrote {written}", highlight=False, soft_wrap=True)


def export(args: list[str]) -> None:
    """Writes a trained network for other programs, reads it back and compares."""

    def define(values: flags.FlagValues) -> None:
        _define_run(values)
        flags.DEFINE_string("format", "safetensors", "safetensors, stablehlo or onnx", flag_values=values)
        flags.DEFINE_string("out", None, "the file", flag_values=values)
        flags.DEFINE_bool("half", False, "weights as float16", flag_values=values)
        flags.DEFINE_integer("batch_size", None, "the only one; any", 1, flag_values=values)

    values, _ = parse_flags("export", args, define)
    from cnnjax.inference import export as export_lib

    if values.format not in export_lib.FORMATS:
        raise unknown("--format", values.format, export_lib.FORMATS)
    if not values.out:
        suffix = export_lib.FORMATS[values.format].suffix
        raise UserError(f"--out is missing; name a file, as in --out=model{suffix}")
    options = {"half": values.half, "batch_size": values.batch_size}
    done = export_lib.export(_load(values), values.format, values.out, **options)
    print(
        f"wrote {values.out} ({done.num_bytes:,} bytes); read back, its logits differ by at most "
        f"{done.difference:.1e}"
    )


def explore(args: list[str]) -> None:
    """Serves a page to play with a trained network, on this machine only."""

    def define(values: flags.FlagValues) -> None:
        _define_run(values)
        flags.DEFINE_integer("port", 8000, "of 127.0.0.1; 0 takes a free one", 0, 65535, flag_values=values)

    values, _ = parse_flags("explore", args, define)
    try:
        from cnnjax.explore.page import server
    except ImportError as error:
        raise UserError(f"the page needs {error.name}; pip install 'cnnjax[explore]'") from None
    trained = _load(values)
    server.serve(trained, values.port, announce=lambda address: print(f"open {address}", file=sys.stderr))
