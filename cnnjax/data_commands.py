"""`cnnjax data`: the list of data sets, and `prepare`."""

from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cnnjax.data import datasets, prepare
from cnnjax.errors import UserError


def define(values: flags.FlagValues) -> None:
    """The flags of `cnnjax data`."""
    flags.DEFINE_string("dir", None, "a folder to look in first", flag_values=values)
    flags.DEFINE_string("out", None, "prepare: the folder to write", flag_values=values)
    flags.DEFINE_integer(
        "short_side", 256, "prepare: pixels of the square", flag_values=values, lower_bound=1
    )
    flags.DEFINE_string("format", "raw", "prepare: raw or jpeg", flag_values=values)
    flags.DEFINE_string("on_bad_image", "error", "prepare: error or skip", flag_values=values)


def list_datasets(folder: str | None) -> None:
    """Prints the data sets that have a name."""
    table = Table("name", "train", "test", "classes", "image", "found in")
    for row in datasets.describe(folder):
        cells = [row[name] for name in ("name", "train", "test", "classes", "image")]
        table.add_row(*map(str, cells), row["found"] or "not here")
    Console().print(table)
    print(f"Also by path: {', '.join(datasets.FORMS)}")


def prepare_dataset(name: str, values: Any) -> None:
    """Writes a data set as records of one size; one of TFDS that is not here is prepared first."""
    if name.startswith("tfds:") and not values.out:
        prepare.prepare_tfds(name.removeprefix("tfds:"), datasets.tfds_folder(values.dir))
        return
    if not values.out:
        raise UserError("--out is missing; name the folder that `cnnjax data prepare` writes")
    sources = {
        split: datasets.load(name, split, data_dir=values.dir, size=values.short_side)
        for split in datasets.official_splits(name, values.dir)
    }
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("preparing", total=None)
        facts = prepare.prepare(
            sources,
            Path(values.out),
            encoding=values.format,
            on_bad_image=values.on_bad_image,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for split, shards in facts["splits"].items():
        skipped = [message for shard in shards for message in shard["skipped"]]
        print(f"{split}: {sum(len(s['labels']) for s in shards)} images, {len(skipped)} left out")
        for message in skipped:
            print(f"  left out: {message}")
    print(f"train with --config.data.name=records:{values.out}")
