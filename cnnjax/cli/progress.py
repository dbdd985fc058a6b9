"""What a run shows as it trains: a bar on a terminal, elsewhere one line per interval, or nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.status import Status

from cnnjax.cli.tables import Console
from cnnjax.runs import log


class Lines(log.Progress):
    """One line for each row of metrics."""

    def __init__(self, console: Console):
        self.console = console

    def header(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.note(line)

    def row(self, row: dict[str, Any]) -> None:
        self.note(describe(row))

    def note(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)


class Bar(Lines):
    """A word on what happens before the first step; then a bar, beside it the latest training loss."""

    def __init__(self, console: Console, status: Status):
        super().__init__(console)
        self._status = status
        columns = (
            SpinnerColumn(),
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, TextColumn("{task.description}"), console=console)
        self._task = TaskID(0)

    def stage(self, text: str) -> None:
        self._status.update(text)
        self._status.start()

    def start(self, step: int, total_steps: int) -> None:
        self._status.stop()
        self._bar.start()
        self._task = self._bar.add_task("compiling ...", completed=step, total=total_steps)

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def row(self, row: dict[str, Any]) -> None:
        if "loss" not in row:
            return super().row(row)
        words = f"loss {row['loss']:.3f}  {'  '.join(speed(row))}"
        self._bar.update(self._task, description=words)

    def stop(self) -> None:
        self._status.stop()
        self._bar.stop()


def describe(row: dict[str, Any]) -> str:
    """A row of metrics as one line of text."""
    words = [f"step {row['step']}", f"epoch {row['epoch']:.2f}"]
    for name, value in row.items():
        if name.endswith("accuracy"):
            words.append(f"{name.replace('_', ' ')} {100 * value:.2f} %")
        elif name.endswith("loss"):
            words.append(f"{name.replace('_', ' ')} {value:.4f}")
        elif name == "learning_rate":
            words.append(f"learning rate {value:.2g}")
    return "  ".join([*words, *speed(row)])


def speed(row: Mapping[str, float]) -> list[str]:
    """What a row of training says of speed; an older one says less."""
    words = []
    if (rate := row.get("images_per_second")) is not None:
        words.append(f"{rate:.0f} images/s")
    if (each := row.get("images_per_second_per_device", rate)) != rate:
        words.append(f"{each:.0f} per device")
    if (mfu := row.get("mfu")) is not None:
        words.append(f"MFU {100 * mfu:.1f} %")
    if (goodput := row.get("goodput")) is not None:
        lost = {name: row[name] for name in row if name.endswith("_share") and row[name] >= 0.01}
        causes = ", ".join(f"{name.removesuffix('_share')} {100 * lost[name]:.0f} %" for name in lost)
        words.append(f"goodput {100 * goodput:.0f} %{f' ({causes})' * bool(causes)}")
    if (memory := row.get("memory_bytes")) is not None:
        words.append(f"{memory / 2**30:.1f} GiB")
    return words
