"""`cnnjax data`: the list of data sets, `prepare` and `inspect`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated as Flag

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cnnjax.cli.flags import command, given
from cnnjax.cli.tables import print_tables
from cnnjax.data import datasets, prepare, statistics
from cnnjax.data.sources import tfds
from cnnjax.data.sources.source import Source
from cnnjax.errors import UserError


@command("data", words=2)
def data(
    words: list[str],
    *,
    dir: Flag[str | None, "folder to search first"] = None,
    out: Flag[str | None, "prepare: folder to write; inspect: .png to draw"] = None,
    short_side: Flag[int, "prepare: pixels of the square", 1] = 256,
    augment: Flag[str, "inspect: augmentation to draw, or 'each'"] = "mirror|normalize",
    format: Flag[str, "prepare: raw or jpeg"] = "raw",
    on_bad_image: Flag[str, "prepare: error or skip"] = "error",
) -> None:
    """Lists the data sets, prepares one, or describes what is in it."""
    match words:
        case []:
            list_datasets(dir)
        case ["prepare", name] if name.startswith("tfds:") and not out:
            prepare.prepare_tfds(name.removeprefix("tfds:"), tfds.tfds_folders(dir)[0])
        case ["prepare", name]:
            out = given("out", out, "name the folder that `cnnjax data prepare` writes")
            prepare_dataset(_sources(name, dir, short_side), out, format, on_bad_image)
        case ["inspect", _] if out and not out.endswith(".png"):
            raise UserError(f"--out={out}: the sheet is a PNG; name a file that ends in .png")
        case ["inspect", name]:
            inspect_dataset(_sources(name, dir, short_side), out, augment)
        case _:
            writing = "cnnjax data prepare NAME --out=DIR --short_side=256 --format=raw"
            raise UserError(f"usage: cnnjax data, or {writing}, or cnnjax data inspect NAME --out=FILE.png")


def list_datasets(folder: str | None) -> None:
    """Prints the data sets that have a name."""
    table = Table("name", "train", "test", "classes", "image", "found in")
    for name, info in datasets.DATASETS.items():
        sizes = (str(info.splits["train"]), str(info.splits["test"]), str(info.num_classes))
        shape, place = "x".join(map(str, info.image_shape)), datasets.available(name, folder)
        table.add_row(name, *sizes, shape, place or "not available locally")
    Console().print(table)
    print(f"Also by path: {', '.join(datasets.forms())}")


def prepare_dataset(sources: dict[str, Source], out: str, form: str, on_bad_image: str) -> None:
    """Writes the splits of a data set as records of one size."""
    with _bar("preparing") as bar:
        facts = prepare.prepare(sources, Path(out), encoding=form, on_bad_image=on_bad_image, progress=bar)
    for split, shards in facts["splits"].items():
        skipped = [message for shard in shards for message in shard["skipped"]]
        print(f"{split}: {sum(len(s['labels']) for s in shards)} images, {len(skipped)} left out")
        for message in skipped:
            print(f"  left out: {message}")
    print(f"train with --config.data.name=records:{out}")


def inspect_dataset(sources: dict[str, Source], out: str | None, augment: str) -> None:
    """Prints what is in a data set; with `out`, draws some of its images before and after augmentation."""
    with _bar("reading") as progress:
        summaries = statistics.inspect(sources, progress)
    first, source = next(iter(sources.items()))
    colours = summaries[first].colours
    if colours is None:
        raise UserError(f"no image of {first} can be read, the first: {summaries[first].unreadable[0]}")
    table = Table("split", "images", "classes", "min, max per class", "sizes", "copies", "unreadable")
    for split, seen in summaries.items():
        counts = [seen.classes[label] for label in range(len(source.class_names))]
        sizes = ", ".join(f"{h}x{w}" for (h, w), _ in seen.sizes.most_common(3))
        cells = (sum(counts), sum(map(bool, counts)), f"{min(counts)}, {max(counts)}", sizes, seen.copies)
        table.add_row(split, *map(str, cells), str(len(seen.unreadable)))
    print_tables(table)
    eigenvalues = np.linalg.eigvalsh(colours.covariance)[::-1]
    for word, values in (("mean", colours.mean), ("std", colours.std), ("eigenvalues", eigenvalues)):
        print(f"{word}: {', '.join(f'{value:.6f}' for value in values)}")
    pairs = statistics.shared(summaries)
    print(f"images in two splits: {len(pairs)}")
    for a, i, b, k in pairs[:10]:
        print(f"  {a} {i} is {b} {k}")
    for message in (message for seen in summaries.values() for message in seen.unreadable):
        print(f"  cannot be read: {message}")
    if out:
        from cnnjax.explore.augmentations import draw_sheet

        positions = list(summaries[first].first.values())  # of images that are readable and no copies
        draw_sheet(source, positions, augment, colours.statistics()).savefig(out, dpi=120)
        print(f"wrote {out}")


def _sources(name: str, folder: str | None, short_side: int) -> dict[str, Source]:
    splits = datasets.official_splits(name, folder)
    return {split: datasets.load(name, split, data_dir=folder, size=short_side) for split in splits}


@contextlib.contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the standard error, as a function of (done, total)."""
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
