"""Tars and Parquet files below a folder, by the split that the name of each, or of a folder of it, has."""

from collections.abc import Iterable
from pathlib import Path

from cnnjax.data.sources.archive import is_junk, walk
from cnnjax.data.sources.layout import split_of
from cnnjax.errors import UserError, listed


def find_files(root: Path, suffix: str) -> list[Path]:
    """Those that end in `suffix`, sorted; links are followed and junk is left out as in image folders."""
    names = (name for name, *_ in walk(root)) if root.is_dir() else ()
    return sorted(root / n for n in names if n.endswith(suffix) and not is_junk(n.rpartition("/")[2]))


def by_split(root: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    """Split -> its files; all are train if no name of a path has the word of one.

    Raises: UserError if some names have a split and others none, and for files below several folders that
    may hold the same images: only folders inside that of a split are parts of it.
    """
    found: dict[str, list[Path]] = {}
    groups = set()
    for path in files:
        parts = path.relative_to(root).parts or (path.name,)
        splits = [words[0] if (words := split_of(part)) else None for part in parts]
        found.setdefault(next(filter(None, splits[::-1]), ""), []).append(path)
        outermost = next((place for place, split in enumerate(splits) if split), len(parts) - 1)
        groups.add("/".join(parts[:outermost]) or ".")
    if without := found.pop("", []):
        if found:
            allowed = "names with train, validation or test, or none with them"
            raise UserError(f"{without[0]}: its name does not name a split, others do; allowed: {allowed}")
        found = {"train": without}
    if len(groups) > 1:
        given = f"several configs or revisions: {listed(sorted(groups))}"
        raise UserError(f"{root}: {given}; name one of the folders, or move the parts of one set into train/")
    return found
