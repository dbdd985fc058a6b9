"""The published weights of networks here: tables that `experiments/models/weights.py` writes."""

import csv
import dataclasses
import difflib
import functools
from pathlib import Path

from cnnjax.errors import UserError, listed, parse_call, unknown
from cnnjax.models.variants import Preset, timm_preset

HERE = Path(__file__).parent
SOURCES = ("torchvision", "timm")


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of a table: a set of weights that has a name."""

    source: str  # of SOURCES
    model: str  # the network here
    there: str  # its name at the source
    tag: str
    default: bool  # what the source takes if no tag is given
    place: str  # a file name of torchvision, or a repository of the Hub
    mb: float  # MiB
    preset: Preset
    license: str
    top1: float | None = None  # per cent on ImageNet's validation images, as the source says
    top5: float | None = None

    @property
    def name(self) -> str:
        """How it is written as a source of weights."""
        return f"{self.source}:{self.there}{':' if self.source == 'torchvision' else '.'}{self.tag}"


@functools.cache
def published() -> tuple[Published, ...]:
    """All rows."""
    return *map(_torchvision, _rows("torchvision.csv")), *map(_timm, _rows("timm.csv"))


def find(source: str, model: str, tag: str = "") -> Published:
    """The weights of a network, of a spec or of its name at the source, by their tag or the default ones.

    UserError says in one line what there is.
    """
    name = parse_call(model, "model")[0]
    own = [row for row in published() if name in (row.model, row.there)]
    rows = [row for row in own if row.source == source]
    if not rows:
        if not own:
            raise _without(name, source)
        raise UserError(f"{name} has no weights of {source}; it has {listed([row.name for row in own])}")
    found = [row for row in rows if row.tag == tag or (row.default and not tag)] or rows[: not tag]
    if not found:
        raise unknown(f"weights of {source} for {name}", tag, [row.tag for row in rows])
    return found[0]


def _without(name: str, source: str) -> UserError:
    names = sorted({row.model for row in published() if row.source == source})
    near = difflib.get_close_matches(name, names, n=2)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    return UserError(f"{name} has no weights of {source}{hint}; networks that have: {listed(names, name)}")


def _rows(name: str) -> list[dict[str, str]]:
    with (HERE / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _torchvision(row: dict[str, str]) -> Published:
    crop, mean, std = int(row["crop"]), _numbers(row["mean"]), _numbers(row["std"])
    preset = Preset((crop, crop, 3), 1000, int(row["resize"]), row["interpolation"], mean=mean, std=std)
    there, scores = row["model"].removesuffix("_torchvision"), (float(row["top1"]), float(row["top5"]))
    known = row["tag"], row["default"] == "1", row["file"], float(row["mb"])
    return Published("torchvision", row["model"], there, *known, preset, row["license"], *scores)


def _timm(row: dict[str, str]) -> Published:
    side, how = int(row["input"]), (float(row["crop_pct"]), row["interpolation"], row["crop_mode"])
    mean, std = _numbers(row["mean"]), _numbers(row["std"])
    preset = timm_preset((side, side, 3), int(row["classes"]), *how, mean=mean, std=std)
    known = row["tag"], row["default"] == "1", row["hub"], float(row["mb"])
    return Published("timm", row["model"], row["timm"], *known, preset, row["license"])


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))
