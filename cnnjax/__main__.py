"""The command `cnnjax`, also as `python -m cnnjax`."""

import os
import re
import sys
from pathlib import Path

PRELOAD = "LD_PRELOAD"


def main() -> None:
    """Runs the command line, in a program that uses large blocks of memory again (ops/cpu/reuse.c)."""
    library = str(next(Path(__file__).parent.glob("ops/cpu/_reuse*.so"), ""))
    before = re.split("[: ]", os.environ.pop(PRELOAD, ""))
    others = [name for name in before if name not in ("", library)]
    if library and library not in before and not re.search("[: ]", library):
        os.environ[PRELOAD] = ":".join([library, *others])  # the system reads it when a program starts
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if others:
        os.environ[PRELOAD] = ":".join(others)  # the library is not for the programs that this one starts
    from cnnjax import cli

    cli.main()


if __name__ == "__main__":
    main()
