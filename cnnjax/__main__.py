"""`python -m cnnjax` is the command `cnnjax`."""

from cnnjax.cli import main

main()
