"""`cnnjax data`: the list of data sets, `prepare` and `inspect`."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cnnjax.data import augment as augment_lib
from cnnjax.data import datasets, inspection, prepare
from cnnjax.errors import UserError
from cnnjax.tables import print_table


def define(values: flags.FlagValues) -> None:
    """The flags of `cnnjax data`."""
    flags.DEFINE_string("dir", None, "a folder to look in first", flag_values=values)
    flags.DEFINE_string("out", None, "prepare: the folder; inspect: the .png to write", flag_values=values)
    flags.DEFINE_integer(
        "short_side", 256, "prepare: pixels of the square", flag_values=values, lower_bound=1
    )
    flags.DEFINE_string("augment", "mirror|normalize", "inspect: shown in the sheet", flag_values=values)
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
        found, colours = inspection.inspect(
            sources, lambda done, total: bar.update(task, completed=done, total=total)
        )
    names = next(iter(sources.values())).class_names
    table = Table("split", "images", "classes", "least, most of a class", "sizes", "copies", "unreadable")
    for split, seen in found.items():
        counts = [seen.classes[label] for label in range(len(names))]
        sizes = ", ".join(f"{h}x{w}" for (h, w), _ in seen.sizes.most_common(3))
        cells = (sum(counts), sum(map(bool, counts)), f"{min(counts)}, {max(counts)}", sizes, seen.copies)
        table.add_row(split, *map(str, cells), str(len(seen.unreadable)))
    print_table(table)
    for word in ("mean", "std", "eigenvalues"):
        print(f"{word}: {', '.join(f'{value:.6f}' for value in colours[word])}")
    pairs = inspection.shared(found)
    print(f"images in two splits: {len(pairs)}")
    for a, i, b, k in pairs[:10]:
        print(f"  {a} {i} is {b} {k}")
    for message in (message for seen in found.values() for message in seen.unreadable):
        print(f"  cannot be read: {message}")
    if values.out:
        source = next(iter(sources.values()))
        augment = augment_lib.parse(
            values.augment,
            image_shape=source.image_shape,
            mean=colours["mean"],
            std=colours["std"],
            covariance=colours["eigenvectors"] * colours["eigenvalues"] @ colours["eigenvectors"].T,
        )
        draw_sheet(source, augment, list(found[source.split].first.values()), Path(values.out))
        print(f"wrote {values.out}")


def draw_sheet(source: Any, augment: augment_lib.Augmentation, positions: list[int], out: Path) -> None:
    """A PNG of eight images, evenly spaced among those at `positions`: above as they are, below augmented."""
    chosen = [positions[i] for i in np.linspace(0, len(positions) - 1, min(8, len(positions))).astype(int)]
    examples = [source[position] for position in chosen]
    images = np.stack([example["image"] for example in examples])
    labels = np.eye(source.num_classes, dtype=np.float32)[[example["label"] for example in examples]]
    key, index = jax.random.key(0), jnp.arange(len(images))
    augmented, _ = augment(key, images, labels, augment_lib.Examples(key, index, jnp.zeros_like(index)))
    facts = [dict(arguments) for name, arguments in augment.steps if name == "normalize"]
    for fact in facts:
        augmented = augmented * np.asarray(fact["std"]) + np.asarray(fact["mean"])
    figure = matplotlib.figure.Figure(figsize=(1.5 * len(examples), 3.4), layout="constrained")
    axes = figure.subplots(2, len(examples), squeeze=False)
    for row, pictures in zip(axes, (images / 255, np.clip(augmented, 0, 1)), strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
    for axis, example in zip(axes[0], examples, strict=True):
        axis.set_title(source.class_names[example["label"]], fontsize=8)
    figure.savefig(out, dpi=120)
