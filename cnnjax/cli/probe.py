"""`cnnjax probe`: what the features of a network tell of other classes."""

import dataclasses
from typing import Annotated as Flag

from rich.table import Table

from cnnjax.cli.flags import Json, command
from cnnjax.cli.predict import load
from cnnjax.cli.tables import print_result


@command("probe", like=load)
def probe(
    *,
    data: Flag[str | None, "data set with train and test splits (default: the run's own)"] = None,
    layer: Flag[str | None, "stage or layer (default: the input of the head)"] = None,
    batch_size: Flag[int, "images per batch", 1] = 64,
    seed: Flag[int, "seed for the images held out of train", 0] = 0,
    json: Json = False,
    **chosen: str,
) -> None:
    """Prints the accuracy of a linear probe and of nearest neighbours on the features of a data set."""
    from cnnjax.inference import probe as probe_lib

    found = probe_lib.probe(load(**chosen), data, layer=layer, batch_size=batch_size, seed=seed)
    title = f"{found.width} features of {layer or 'the input of the head'}, {found.num_train} training images"
    table = Table("classifier", "accuracy", "95 % interval", "chosen", title=title)
    for name, what, score in (("linear", "C", found.linear), ("neighbours", "k", found.neighbours)):
        low, high = 100 * score.low, 100 * score.high
        row = f"{100 * score.accuracy:.2f} %", f"{low:.2f} to {high:.2f} %", f"{what} = {score.chosen:g}"
        table.add_row(name, *row)
    print_result(dataclasses.asdict(found), json, table)
