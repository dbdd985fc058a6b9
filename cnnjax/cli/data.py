"""`cnnjax data`: the list of data sets, `prepare` and `inspect`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated as Flag

import numpy as np
from rich.progress import Progress
from rich.table import Table

from cnnjax.cli.flags import command, given
from cnnjax.cli.tables import Console, print_json, print_tables, say
from cnnjax.data import datasets, prepare, statistics
from cnnjax.data import recipe as recipes
from cnnjax.data.files import replacing
from cnnjax.data.sources import tfds
from cnnjax.data.sources.sets import SeveralSizes
from cnnjax.data.sources.source import Source, describe, resizes
from cnnjax.errors import UserError, listed

SHORT_SIDE = 256
MOST_CLASSES, MOST_PAIRS = 50, 10  # that are listed


@command("data", words=2)
def data(
    words: list[str],
    *,
    dir: Flag[str | None, "folder to search first"] = None,
    out: Flag[str | None, "prepare: folder to write; inspect: .png to draw"] = None,
    short_side: Flag[int | None, "short side in pixels (default: as stored; prepare: at most 256)", 1] = None,
    augment: Flag[str, "inspect: augmentation to draw, or 'each'"] = "mirror|normalize",
    format: Flag[str, "prepare: raw or jpeg"] = "raw",
    on_bad_image: Flag[str, "prepare: error or skip"] = "error",
    json: Flag[bool, "inspect: print JSON, with all images in two splits"] = False,
) -> None:
    """Lists data sets, prepares one, or describes its contents."""
    if json and words[:1] != ["inspect"]:
        raise UserError("--json is for `cnnjax data inspect NAME`; leave it out")
    match words:
        case []:
            list_datasets(dir)
        case ["prepare", name] if name.startswith("tfds:") and not out:
            if short_side:
                raise UserError(
                    f"--short_side={short_side} needs --out; name the folder to write, or leave it out"
                )
            prepare.prepare_tfds(name.removeprefix("tfds:"), tfds.tfds_folders(dir)[0])
        case ["prepare", name]:
            out = given("out", out, "name the folder that `cnnjax data prepare` writes")
            prepare_dataset(_of_one_size(name, dir, short_side), out, format, on_bad_image)
        case ["inspect", _] if out and not out.endswith(".png"):
            raise UserError(f"--out={out}: the sheet is a PNG; name a file that ends in .png")
        case ["inspect", name]:
            recipe = recipes.fast(short_side) if short_side else None  # one, else copies differ by split
            contents = inspect_dataset(datasets.load_official(name, dir, recipe=recipe, any_size=True), json)
            if out:
                draw_dataset(_of_one_size(name, dir, short_side), contents, out, augment)
                say(f"wrote {out}", error=json)
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
    """Says what a data set was understood as, and writes its splits as records of one size."""
    source = next(iter(sources.values()))
    say(describe(source))
    hint = "; --short_side=N resizes to NxN" if resizes(source) else ""
    say(f"stored as {source.image_shape[0]}x{source.image_shape[1]}{hint}")
    with _bar("preparing") as bar:
        facts = prepare.prepare(sources, Path(out), encoding=form, on_bad_image=on_bad_image, progress=bar)
    for split, shards in facts["splits"].items():
        skipped = [message for shard in shards for message in shard["skipped"]]
        print(f"{split}: {sum(len(s['labels']) for s in shards)} images, {len(skipped)} skipped")
        for message in skipped:
            print(f"  skipped: {message}")
    say(f"train with --data=records:{out}")


def inspect_dataset(sources: dict[str, Source], as_json: bool = False) -> dict[str, statistics.Contents]:
    """Prints what a data set was understood as, and what is in it."""
    with _bar("reading") as progress:
        summaries = statistics.inspect(sources, progress)
    first, source = next(iter(sources.items()))
    if not as_json:
        say(describe(source))
    colours = summaries[first].colours
    if colours is None:
        raise UserError(f"no image of {first} can be read; the first error: {summaries[first].unreadable[0]}")
    if as_json:
        print_json(_facts(source, summaries))
        return summaries
    columns = "split", "images", "classes", "min, max per class", "channels", "grey", "sizes"
    table = Table(*columns, "copies", "unreadable")
    for split, seen in summaries.items():
        counts = [seen.classes[label] for label in range(source.num_classes)]
        sizes = listed([f"{h}x{w} ({count})" for (h, w), count in seen.sizes.most_common()], most=3)
        channels = len(seen.colours.mean) if seen.colours else 0
        cells = (sum(counts), sum(map(bool, counts)), f"{min(counts)}, {max(counts)}", channels, seen.grey)
        table.add_row(split, *map(str, cells), sizes, str(len(seen.copies)), str(len(seen.unreadable)))
    classes = Table("class", *summaries)
    for label, name in enumerate(source.class_names[:MOST_CLASSES]):
        classes.add_row(name, *(str(seen.classes[label]) for seen in summaries.values()))
    print_tables(table, classes)
    if source.num_classes > MOST_CLASSES:
        print(f"and {source.num_classes - MOST_CLASSES} more classes")
    eigenvalues = np.linalg.eigvalsh(colours.covariance)[::-1]
    for word, values in (("mean", colours.mean), ("std", colours.std), ("eigenvalues", eigenvalues)):
        print(f"{word} of {first}: {', '.join(f'{value:.6f}' for value in values)}")
    pairs = statistics.shared(summaries)
    print(f"images in two splits: {len(pairs)}")
    for a, i, b, k in pairs[:MOST_PAIRS]:
        names = [summaries[split].names.get(index) for split, index in ((a, i), (b, k))]
        say(f"  {a} {i} is {b} {k}{f': {names[0]} is {names[1]}' if all(names) else ''}")
    if len(pairs) > MOST_PAIRS:
        print(f"  and {len(pairs) - MOST_PAIRS} more; --json lists all")
    if source.name.startswith("records:") and len(sources) > 1:
        hint = "if `prepare` resized them, as it decodes train faster; inspect the original data"
        print(f"more cannot be told {hint}")
    for message in (message for seen in summaries.values() for message in seen.unreadable):
        print(f"  cannot be read: {message}")
    return summaries


def _facts(source: Source, contents: dict[str, statistics.Contents]) -> dict[str, object]:
    """What `inspect_dataset` prints of a data set, of which `source` is a split, and every image in two."""
    splits = {
        split: {
            "images": seen.classes.total(),
            "classes": {name: seen.classes[label] for label, name in enumerate(source.class_names)},
            "sizes": [[*size, count] for size, count in seen.sizes.most_common()],
            "grey": seen.grey,
            "copies": len(seen.copies),
            "unreadable": seen.unreadable,
            "mean": seen.colours.mean.tolist() if seen.colours else None,
            "std": seen.colours.std.tolist() if seen.colours else None,
        }
        for split, seen in contents.items()
    }
    places = [((a, i), (b, k)) for a, i, b, k in statistics.shared(contents)]
    shared = [
        [{"split": split, "index": i, "name": contents[split].names.get(i)} for split, i in both]
        for both in places
    ]
    return {"name": source.name, "notes": source.notes, "splits": splits, "in_two_splits": shared}


def draw_dataset(
    sources: dict[str, Source], contents: dict[str, statistics.Contents], out: str, augment: str
) -> None:
    """Draws some images of the first split before and after augmentation."""
    from cnnjax.explore.augmentations import draw_sheet

    first, source = next(iter(sources.items()))
    seen = contents[first]
    assert seen.colours is not None  # else `inspect_dataset` has refused it
    positions = list(seen.first.values())  # of images that are readable and no copies
    with replacing(Path(out)) as part:
        draw_sheet(source, positions, augment, seen.colours.statistics()).savefig(part, dpi=120)


def _sources(name: str, folder: str | None, short_side: int | None) -> dict[str, Source]:
    return datasets.load_official(name, folder, size=short_side, any_size=True)


def _of_one_size(name: str, folder: str | None, short_side: int | None) -> dict[str, Source]:
    """By default at SHORT_SIDE; smaller images keep their size, or if it differs take that of most."""
    if short_side:
        return _sources(name, folder, short_side)
    try:
        sources = datasets.load_official(name, folder)
        side = min((source := next(iter(sources.values()))).image_shape[:2])
        if side <= SHORT_SIDE or not resizes(source):
            return sources
    except SeveralSizes as error:
        side = error.side
    return _sources(name, folder, min(side, SHORT_SIDE))


@contextlib.contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the standard error, as a function of (done, total)."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
