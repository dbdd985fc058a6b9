"""`cnnjax data`: the list of data sets, `prepare` and `inspect`."""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cnnjax.cli.flags import parse_flags
from cnnjax.cli.tables import print_table
from cnnjax.data import datasets, inspect, prepare
from cnnjax.data.augment import chain as augment_lib
from cnnjax.data.sources import tfds
from cnnjax.data.sources.source import Example, Source, evenly_spaced
from cnnjax.errors import UserError
from cnnjax.explore.augmentations import draw_sheet


def define(values: flags.FlagValues) -> None:
    """The flags of `cnnjax data`."""
    flags.DEFINE_string("dir", None, "a folder to look in first", flag_values=values)
    flags.DEFINE_string("out", None, "prepare: the folder; inspect: the .png to write", flag_values=values)
    flags.DEFINE_integer(
        "short_side", 256, "prepare: pixels of the square", flag_values=values, lower_bound=1
    )
    flags.DEFINE_string("augment", "mirror|normalize", "inspect: shown, or 'each'", flag_values=values)
    flags.DEFINE_string("format", "raw", "prepare: raw or jpeg", flag_values=values)
    flags.DEFINE_string("on_bad_image", "error", "prepare: error or skip", flag_values=values)


def list_datasets(folder: str | None) -> None:
    """Prints the data sets that have a name."""
    table = Table("name", "train", "test", "classes", "image", "found in")
    for row in datasets.describe(folder):
        cells = [row[name] for name in ("name", "train", "test", "classes", "image")]
        table.add_row(*map(str, cells), row["found"] or "not here")
    Console().print(table)
    print(f"Also by path: {', '.join(datasets.forms())}")


def prepare_dataset(name: str, values: Any) -> None:
    """Writes a data set as records of one size; one of TFDS that is not here is prepared first."""
    if name.startswith("tfds:") and not values.out:
        prepare.prepare_tfds(name.removeprefix("tfds:"), tfds.tfds_folders(values.dir)[0])
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


def inspect_dataset(name: str, values: Any) -> None:
    """Prints what is in a data set; with --out draws a sheet of its images as they are and augmented."""
    if values.out and not values.out.endswith(".png"):
        raise UserError(f"--out={values.out}: the sheet is a PNG; name a file that ends in .png")
    sources = {
        split: datasets.load(name, split, data_dir=values.dir, size=values.short_side)
        for split in datasets.official_splits(name, values.dir)
    }
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=None)
        found = inspect.inspect(sources, lambda done, total: bar.update(task, completed=done, total=total))
    names = next(iter(sources.values())).class_names
    table = Table("split", "images", "classes", "least, most of a class", "sizes", "copies", "unreadable")
    for split, seen in found.items():
        counts = [seen.classes[label] for label in range(len(names))]
        sizes = ", ".join(f"{h}x{w}" for (h, w), _ in seen.sizes.most_common(3))
        cells = (sum(counts), sum(map(bool, counts)), f"{min(counts)}, {max(counts)}", sizes, seen.copies)
        table.add_row(split, *map(str, cells), str(len(seen.unreadable)))
    print_table(table)
    first = next(iter(found.values()))
    if first.colours is None:
        raise UserError(f"{name}: no image can be read, the first: {first.unreadable[0]}")
    colours = first.colours
    eigenvalues = np.linalg.eigvalsh(colours.covariance)[::-1]
    for word, numbers in (("mean", colours.mean), ("std", colours.std), ("eigenvalues", eigenvalues)):
        print(f"{word}: {', '.join(f'{number:.6f}' for number in numbers)}")
    pairs = inspect.shared(found)
    print(f"images in two splits: {len(pairs)}")
    for a, i, b, k in pairs[:10]:
        print(f"  {a} {i} is {b} {k}")
    for message in (message for seen in found.values() for message in seen.unreadable):
        print(f"  cannot be read: {message}")
    source = next(iter(sources.values()))
    if values.out and values.augment == "each":
        from cnnjax.explore.augmentations import contact_sheet

        contact_sheet(np.stack([e["image"] for e in _chosen(source, found)])).savefig(values.out, dpi=120)
        print(f"wrote {values.out}")
    elif values.out:
        augment = augment_lib.parse(
            values.augment,
            image_shape=source.image_shape,
            num_classes=source.num_classes,
            **colours.statistics()._asdict(),
        )
        draw_sheet(source, augment, _chosen(source, found), Path(values.out))
        print(f"wrote {values.out}")


def _chosen(source: Source, found: dict[str, inspect.Contents]) -> list[Example]:
    """Eight examples, evenly spaced among those that can be read and are not copies."""
    positions = list(found[source.split].first.values())
    return [source[positions[place]] for place in evenly_spaced(len(positions), 8)]


def data(args: list[str]) -> None:
    """Lists the data sets, prepares one, or says what is in it."""
    values, words = parse_flags("data", args, define, max_names=2)
    if not words:
        list_datasets(values.dir)
    elif words[0] == "prepare" and len(words) == 2:
        prepare_dataset(words[1], values)
    elif words[0] == "inspect" and len(words) == 2:
        inspect_dataset(words[1], values)
    else:
        raise UserError(
            "usage: cnnjax data, or cnnjax data prepare NAME --out=DIR --short_side=256 --format=raw, or "
            "cnnjax data inspect NAME --out=FILE.png"
        )
