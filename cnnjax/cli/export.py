"""`cnnjax export` and `weights`: networks for other programs, and from them."""

from typing import Annotated as Flag

from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.cli.flags import command, given
from cnnjax.cli.predict import CALIBRATION, load
from cnnjax.cli.tables import say
from cnnjax.errors import UserError, by_name


@command("export", like=load)
def export(
    *,
    format: Flag[str, "safetensors, stablehlo or onnx"] = "safetensors",
    out: Flag[str | None, "file to write"] = None,
    half: Flag[bool, "store weights as float16"] = False,
    batch_size: Flag[int | None, "fixed batch size (default: any)", 1] = None,
    with_preprocessing: Flag[
        bool, "onnx, stablehlo: a uint8 image of any size in, probabilities out"
    ] = False,
    dtype: Flag[str, "float32, or int8: onnx with quantized layers"] = "float32",
    calibration: Flag[str | None, CALIBRATION] = None,
    **run: str,
) -> None:
    """Writes a trained network for other programs, reads it back and compares."""
    from cnnjax.inference import export as export_lib
    from cnnjax.inference import sidecar

    suffix = by_name("--format", format, export_lib.FORMATS).suffix
    out = given("out", out, f"name a file, as in --out=model{suffix}")
    whole = with_preprocessing
    trained = load(**run)
    done = export_lib.export(
        trained,
        format,
        out,
        half=half,
        batch_size=batch_size,
        with_preprocessing=whole,
        dtype=dtype,
        calibration=calibration,
    )
    size, difference = f"{done.num_bytes:,} bytes", f"{done.difference:.1e}"
    what = "probabilities" if whole else "logits"
    say(f"wrote {out} ({size}); read back, its {what} differ by at most {difference}")
    if dtype == "int8" and done.agreement is not None:
        say(f"int8 and float32 agree on {100 * done.agreement:.1f} % of {done.count} calibration images")
    if format == "stablehlo" and (day := sidecar.loads_until()):
        say(f"any jaxlib built until {day} loads it; for longer, export with a newer jaxlib")


@command("weights", words=2)
def weights(
    words: list[str],
    *,
    config: ConfigDict,
    fields: frozenset[str],
    model: Flag[str, "import: network of the weights, if the file does not name it"] = "",
    workdir: Flag[str | None, "run folder to write (import) or read (export)"] = None,
    class_names: Flag[str | None, "import: text file with one class name per line"] = None,
    weights: Flag[str | None, "export: raw or ema (default: raw)"] = None,
    checkpoint: Flag[str | None, "export: last, best, or a step (default: last)"] = None,
) -> None:
    """Converts weights into a run folder, or writes the weights of a run under torch's names."""
    if len(words) != 2 or words[0] not in ("import", "export") or not workdir:
        reading = "cnnjax weights import FILE --model=NAME --workdir=DIR (or torchvision, hf:USER/NAME ...)"
        raise UserError(f"usage: {reading}, or cnnjax weights export FILE --workdir=DIR")
    exports, imports = (
        {"weights": weights, "checkpoint": checkpoint},
        {"model": model, "class_names": class_names},
    )
    for flag, value in (imports if words[0] == "export" else exports).items():
        if value:
            raise UserError(f"--{flag}={value} has no effect on weights {words[0]}; leave it out")
    from cnnjax.inference import weights as exchange

    if words[0] == "export":
        chosen = {"checkpoint": checkpoint or "last", "weights": weights or "raw"}
        count = exchange.export_weights(workdir, words[1], **chosen)
        say(f"wrote {count} tensors to {words[1]}")
        return
    config_lib.validate(config)
    write = exchange.import_weights
    paths = write(words[1], config, workdir, model=model, class_names=class_names, given=fields)
    say(f"imported {len(paths)} parameter arrays into {workdir}")
