"""The command `cnnjax`, also as `python -m cnnjax`."""

from cnnjax.cli.main import main

if __name__ == "__main__":
    main()
