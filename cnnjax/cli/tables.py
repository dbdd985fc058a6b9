"""What the commands print: tables, and the numbers in them."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import console as rich_console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from cnnjax.errors import visible

SCORES = ("accuracy", "loss", "macro", "micro", "weighted")  # without which weights are left out


class Console(rich_console.Console):
    """rich's, for text that is no markup: the standard output, or with `stderr` the standard error."""

    def __init__(self, *, stderr: bool = False, file: Any = None, **options: Any):
        file = file or (sys.stderr if stderr else sys.stdout)
        while hasattr(file, "rich_proxied_file"):  # the terminal itself, for colours
            file = file.rich_proxied_file
        super().__init__(file=file, markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Also what is printed while a bar is shown passes here."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text, lines=True), style, control)


def say(text: str, *, error: bool = False) -> None:
    """Prints one line, whatever names are in it, in one write: of several processes none cuts another's."""
    print(f"{visible(text)}\n", end="", file=sys.stderr if error else None, flush=True)


def print_tables(*tables: Table) -> None:
    """Prints wide tables; outside a terminal their lines are as long as they need to be."""
    for table in tables:
        for column in table.columns:
            column.no_wrap = True
        console = Console()
        if not console.is_terminal:
            wide = console.options.update(width=500)
            console = Console(width=console.measure(table, options=wide).maximum)
        console.print(table)


def print_result(facts: Mapping[str, Any], as_json: bool, *tables: Table) -> None:
    """Prints a result as one line of JSON, or as tables."""
    print_json(facts) if as_json else print_tables(*tables)


def print_json(facts: Mapping[str, Any]) -> None:
    """Prints one line of JSON, in which a number that is not finite, and so not JSON, is null."""
    print(json.dumps(_finite(facts), allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def in_units(count: float | None) -> str:
    """4089184256 as '4.089 G'; an unknown count, None, as 'n/a'."""
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


def split_title(metrics: Mapping[str, Any]) -> str:
    """'test, 10 images', and how many were skipped."""
    split = metrics.get("split", "test")  # older runs may lack it
    skipped = f", {metrics['skipped']} skipped" if "skipped" in metrics else ""
    return f"{split}, {metrics['count']} images{skipped}"


def metrics_tables(metrics: Mapping[str, Any], class_names: Sequence[str]) -> list[Table]:
    """The metrics of one split: of all images, averaged over classes, and by class for up to 20 classes."""
    from cnnjax.training.metrics import averages as averages_of
    from cnnjax.training.metrics import has_top5

    whole = Table("metric", "value", title=split_title(metrics))
    averages = Table("average", "precision", "recall", "F1")
    for prefix, words in (("", ""), ("ema_", "EMA ")):
        if not {f"{prefix}{name}" for name in SCORES} <= metrics.keys():
            continue
        whole.add_row(f"{words}accuracy", f"{100 * metrics[f'{prefix}accuracy']:.2f} %")
        if has_top5(metrics) and f"{prefix}top5_accuracy" in metrics:
            whole.add_row(f"{words}top-5 accuracy", f"{100 * metrics[f'{prefix}top5_accuracy']:.2f} %")
        whole.add_row(f"{words}loss", f"{metrics[f'{prefix}loss']:.4f}")
        for kind, means in averages_of(metrics, prefix).items():
            averages.add_row(words + kind, *(f"{means[name]:.4f}" for name in ("precision", "recall", "f1")))
    scores = metrics["per_class"]
    if len(scores["f1"]) > 20:
        return [whole, averages]
    classes = Table("class", "precision", "recall", "F1", "images")
    for i, name in enumerate(class_names):
        row = [f"{scores[k][i]:.4f}" for k in ("precision", "recall", "f1")]
        classes.add_row(name, *row, str(scores["support"][i]))
    return [whole, averages, classes]
