"""The command `cnnjax`, also as `python -m cnnjax`: signals are watched first, as imports take seconds."""

from cnnjax.cli import streams
from cnnjax.runs import signals


def main() -> None:
    """Runs the command line and exits with its code."""
    streams.repair()
    signals.end_at_once()
    from cnnjax.cli.main import main as command

    try:
        command()
    finally:
        signals.ignore()


if __name__ == "__main__":
    main()
