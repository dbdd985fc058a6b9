"""What a run reports while it trains; each method may be overridden, none needs to be."""

from typing import Any


class Progress:
    """Shows nothing: for tests, and for callers that read the metrics themselves."""

    def start(self, step: int, total_steps: int) -> None:
        """A run begins, or resumes after `step` of `total_steps`."""

    def advance(self, step: int) -> None:
        """A step has been handed to the device."""

    def row(self, row: dict[str, Any]) -> None:
        """A row has been added to the metrics."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def stop(self) -> None:
        """The run has ended, well or not."""
