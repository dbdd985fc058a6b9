"""`cnnjax study`: one of the project's studies on this machine, its table beside the published one."""

import sys
from pathlib import Path
from typing import Annotated as Flag

from cnnjax.cli.flags import command
from cnnjax.errors import UserError, by_name
from cnnjax.runs import children

STUDIES = Path(__file__).parents[2] / "experiments"  # beside the package in a checkout, absent elsewhere
SIZES = ("hour", "minute", "paper")


@command("study", words=1)
def study(
    words: list[str],
    *,
    size: Flag[str, "hour, minute (two steps a run), or paper (the paper's epochs)"] = "hour",
    data: Flag[str | None, "another copy of the data set, as --config.data.name"] = None,
    out: Flag[str | None, "folder of the runs (default: runs/studies/SIZE/NAME in the checkout)"] = None,
) -> int:
    """Repeats a study at a chosen size and writes its table and figure; without a name, lists the studies."""
    if not (STUDIES / "studies.py").is_file():
        raise UserError("cnnjax study needs a checkout of the project, which contains the studies")
    files = {file.parent.name: file for file in sorted(STUDIES.glob("*/run.py")) if _is_study(file)}
    if not words:
        for name, file in files.items():
            question = file.read_text("utf-8").splitlines()[0].strip('"')
            print(f"{name:26}{question}")
        return 0
    file = by_name("study", words[0], files)
    by_name("--size", size, dict.fromkeys(SIZES))
    given = {"size": size, "data": data, "out": str(Path(out).absolute()) if out else None}
    arguments = [f"--{name}={value}" for name, value in given.items() if value]
    code, _ = children.run([[sys.executable, str(file), *arguments]])
    return code


def _is_study(file: Path) -> bool:
    return "studies.main(" in file.read_text("utf-8")
