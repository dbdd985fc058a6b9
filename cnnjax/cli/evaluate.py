"""`cnnjax evaluate`, `replay` and `checkpoint`: questions to a run folder."""

import dataclasses
import functools
from typing import Annotated as Flag
from typing import Any

from rich.table import Table

from cnnjax.cli.flags import Json, Workdir, command, run_folder
from cnnjax.cli.predict import CALIBRATION, load
from cnnjax.cli.tables import metrics_tables, print_result, print_tables, say, split_title
from cnnjax.errors import UserError


@command("evaluate", like=load)
def evaluate(
    *,
    split: Flag[str, "train, validation or test"] = "test",
    data: Flag[str | None, "another data set, its labels matched by class name"] = None,
    dtype: Flag[
        str | None, "float32, bfloat16 or int8; the last two are compared with float32 (default: the run's)"
    ] = None,
    calibration: Flag[str | None, CALIBRATION] = None,
    json: Json = False,
    **chosen: Any,
) -> None:
    """Prints the metrics of a trained network on one split; with --dtype next to those of float32."""
    from cnnjax.inference.model import usable
    from cnnjax.runs import compile_cache, loaded
    from cnnjax.runs.evaluate import evaluate_loaded
    from cnnjax.runs.folder import plain

    compile_cache.enable()
    trained = loaded.load(**chosen)
    score = functools.partial(evaluate_loaded, split=split, data=data)
    if dtype is None:
        if calibration:
            raise UserError("--calibration needs --dtype=int8; add it, or leave --calibration out")
        metrics = plain(score(trained)[0])
        print_result(metrics, json, *metrics_tables(metrics, trained.facts.class_names))
        return

    def in_dtype(dtype: str, calibration: str | None = None) -> loaded.Loaded:
        network = usable(trained).with_dtype(dtype, calibration)
        return dataclasses.replace(trained, model=network.model, variables=network.variables)

    if dtype == "int8" and not trained.config:
        calibration = calibration or data
    network = in_dtype(dtype, calibration)  # its errors come before the first evaluation
    (own, rows), (other, others) = score(in_dtype("float32")), score(network)
    metrics = plain(other) | {"dtype": dtype, "float32": plain(own)}
    metrics |= {"agreement": float((rows["prediction"] == others["prediction"]).mean())}
    print_result(
        metrics, json, _beside(metrics, dtype), *metrics_tables(metrics, trained.facts.class_names)[1:]
    )


def _beside(metrics: dict[str, Any], dtype: str) -> Table:
    from cnnjax.training.metrics import has_top5

    table = Table("metric", "float32", dtype, "difference", title=split_title(metrics))
    top5 = {"top5_accuracy": "top-5 accuracy %"} if has_top5(metrics) else {}
    for name, words in {"accuracy": "accuracy %", **top5, "loss": "loss"}.items():
        factor, digits = (1, 4) if name == "loss" else (100, 2)
        own, other = factor * metrics["float32"][name], factor * metrics[name]
        table.add_row(words, *(f"{x:.{digits}f}" for x in (own, other)), f"{other - own:+.{digits}f}")
    table.add_row("same class %", "", f"{100 * metrics['agreement']:.2f}", "")
    return table


@command("replay")
def replay(
    *,
    workdir: Workdir = None,
    step: Flag[int | None, "counted from 0 (default: the last one in nonfinite.json)", 0] = None,
    json: Json = False,
) -> None:
    """Prints the loss and the gradient norm of each layer, of the last non-finite step or of any other."""
    folder = run_folder(workdir)
    from cnnjax.runs.replay import replay_step

    again = replay_step(folder, step)
    table = Table("layer", "gradient norm", "parameter norm", title=f"step {again.step}")
    for name, norms in again.layers.items():
        table.add_row(name, *(f"{norm:.4g}" for norm in norms))
    print_result(dataclasses.asdict(again), json, table)
    if not json:
        print(f"loss {again.loss:.6g}; replayed from step {again.checkpoint}")
        print(f"examples of the train split: {' '.join(map(str, again.indices))}")


@command("checkpoint", words=1)
def checkpoint(
    words: list[str], *, workdir: Workdir = None, keep: Flag[int, "prune: newest checkpoints to keep", 1] = 2
) -> int:
    """Lists, verifies or prunes the checkpoints of a run; exit code 1 if one of them is damaged."""
    if words not in (["list"], ["verify"], ["prune"]) or not workdir:
        raise UserError("usage: cnnjax checkpoint list | verify | prune --workdir=DIR")
    from cnnjax.runs import checkpoints

    if words == ["prune"]:
        say(f"removed {', '.join(checkpoints.prune(workdir, keep)) or 'nothing'}")
        return 0
    table = Table("step", "files", "bytes", "accuracy %", "EMA accuracy %", "state")
    rows = checkpoints.describe(workdir, verify=words == ["verify"])
    for row in rows:
        table.add_row(*map(str, row.values()))
    print_tables(table)
    return int(any("damaged" in str(row["state"]) for row in rows))
