"""The command `cnnjax`, also as `python -m cnnjax`."""

import os
import sys

# Large arrays in pages of 2 MiB, where the system has them (glibc 2.35, Linux): XLA:CPU allocates the
# workspace of a step anew at each step, and the system clears it page by page.
HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")


def main() -> None:
    """Runs the command line, in a program that was started with huge pages."""
    name, value = HUGE_PAGES
    if sys.platform == "linux" and name not in os.environ:
        os.environ[name] = value  # the C library reads it when a program starts, not later
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    from cnnjax import cli

    cli.main()


if __name__ == "__main__":
    main()
