"""Builds the pages that are made of the code.

python docs/make.py FOLDER [MODULE ...]   # API pages, from the docstrings
python docs/make.py configs               # docs/configs.md, from the table of fields in cnnjax/config.py
"""

import pkgutil
import sys
from pathlib import Path

import pdoc

import cnnjax
from cnnjax import config

COMMANDS = ("cnnjax.__main__", "cnnjax.cli", "cnnjax.explore.page", "cnnjax.profiling.peers")

CONFIGS = Path(__file__).with_name("configs.md")


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


def configs() -> str:
    """docs/configs.md with the table of all fields written anew."""
    rows = ["| field | default | meaning | allowed |", "|---|---|---|---|"]
    for name, field in config.FIELDS.items():
        allowed = field.allowed.words if field.allowed else ""
        cells = (f"`{name}`", f"`{field.default!r}`", field.meaning, allowed)
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join([CONFIGS.read_text().partition("\n| field |")[0], *rows, ""])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python docs/make.py FOLDER [MODULE ...] | configs")
    if sys.argv[1] == "configs":
        CONFIGS.write_text(configs())
    else:
        build(Path(sys.argv[1]), sys.argv[2:] or modules())
