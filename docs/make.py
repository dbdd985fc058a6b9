"""Builds the API pages from the docstrings: `python docs/make.py FOLDER [MODULE ...]`."""

import pkgutil
import sys
from pathlib import Path

import pdoc

import cnnjax

COMMANDS = ("cnnjax.__main__", "cnnjax.cli", "cnnjax.explore.page", "cnnjax.profiling.torch_peer")


def modules() -> list[str]:
    """The package and every module of it that a program may use."""
    found = (info.name for info in pkgutil.walk_packages(cnnjax.__path__, "cnnjax."))
    return ["cnnjax", *(name for name in found if not name.startswith(COMMANDS) and "._" not in name)]


def build(folder: Path, names: list[str]) -> None:
    """Writes the pages of modules into a folder."""
    for name in cnnjax.__all__:
        getattr(cnnjax, name)  # now they stand in the module, where pdoc looks for them
    pdoc.render.configure(docformat="google", search=True)
    pdoc.pdoc(*names, output_directory=folder)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python docs/make.py FOLDER [MODULE ...]")
    build(Path(sys.argv[1]), sys.argv[2:] or modules())
