"""The command `cnnjax`, also as `python -m cnnjax`."""

import os
import re
import sys
from pathlib import Path

PRELOAD = "LD_PRELOAD"


def main() -> None:
    """Runs the command line in a program that uses large blocks of memory again (ops/cpu/reuse.c).

    What compiles for TPUs also has deep stacks (deep_stack.c).
    """
    folder = Path(__file__).parent
    patterns = [
        "ops/cpu/_reuse*.so",
        *(["profiling/_deep_stack*.so"] * (sys.argv[1:2] == ["compile"])),
    ]
    ours = [str(file) for pattern in patterns for file in folder.glob(pattern)]
    before = re.split("[: ]", os.environ.pop(PRELOAD, ""))
    others = [name for name in before if name not in ("", *ours)]
    if not set(ours) <= set(before) and not re.search("[: ]", str(folder)):
        os.environ[PRELOAD] = ":".join([*ours, *others])  # the system reads it when a program starts
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if others:
        os.environ[PRELOAD] = ":".join(others)  # ours are not for the programs that this one starts
    from cnnjax.cli import main as cli

    cli.main()


if __name__ == "__main__":
    main()
