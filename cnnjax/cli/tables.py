"""Tables on the terminal, and numbers in them."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_table(table: Table) -> None:
    """Prints a wide table, on lines of its own length where it goes into a file."""
    for column in table.columns:
        column.no_wrap = True
    console = Console()
    if not console.is_terminal:
        console = Console(width=console.measure(table, options=console.options.update(width=500)).maximum)
    console.print(table)


def in_units(count: int | None) -> str:
    """4089184256 as '4.089 G'; None, which could not be counted, as 'n/a'."""
    if count is None:
        return "n/a"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:g}"


def in_pixels(field: tuple[float, float] | None) -> str:
    """A receptive field as '19', '19x7', 'all' or 'n/a'."""
    if field is None:
        return "n/a"
    height, width = ("all" if value == float("inf") else str(value) for value in field)
    return height if height == width else f"{height}x{width}"


def print_metrics(found: dict[str, Any], class_names: Sequence[str]) -> None:
    """Prints the metrics of one split as tables: the whole, the averages over classes, each class."""
    console = Console()
    whole = Table("metric", "value", title=f"{found['split']}, {found['count']} images")
    averages = Table("average", "precision", "recall", "F1")
    for prefix, words in (("", ""), ("ema_", "EMA ")):
        if f"{prefix}accuracy" not in found:
            continue
        whole.add_row(f"{words}accuracy", f"{100 * found[f'{prefix}accuracy']:.2f} %")
        whole.add_row(f"{words}top-5 accuracy", f"{100 * found[f'{prefix}top5_accuracy']:.2f} %")
        whole.add_row(f"{words}loss", f"{found[f'{prefix}loss']:.4f}")
        for kind in ("macro", "micro", "weighted"):
            averages.add_row(words + kind, *_scores(found[f"{prefix}{kind}"]))
    console.print(whole, averages)
    if len(found["per_class"]["f1"]) <= 20:
        classes = Table("class", "precision", "recall", "F1", "images")
        rows = zip(*(found["per_class"][k] for k in ("precision", "recall", "f1")), strict=True)
        for name, row, support in zip(class_names, rows, found["per_class"]["support"], strict=True):
            classes.add_row(name, *(f"{value:.4f}" for value in row), str(support))
        console.print(classes)


def _scores(row: dict[str, float]) -> list[str]:
    return [f"{row[name]:.4f}" for name in ("precision", "recall", "f1")]
